"""What this process may use of the machine: cores, and memory within the limits of its control
groups.
"""

import os
from pathlib import Path

import psutil

GROUPS = Path(
    "/sys/fs/cgroup"
)  # where Linux shows control groups: containers and cluster jobs have limits there


def num_cores() -> int:
    """Cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # macOS has none


def free_host_memory() -> int:
    """Bytes of host memory that this process may still take: what is free, and within every limit
    above it.
    """
    return max(0, min([psutil.virtual_memory().available, *map(left_in, control_groups())]))


def control_groups(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Folders of the memory control groups that hold this process, inner ones first (versions 1 and
    2).
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, kinds, path in (line for line in lines if len(line) == 3):
        if kinds == "" or "memory" in kinds.split(","):
            root = groups / "memory" if kinds else groups
            place = root / path.lstrip("/")
            found += [one for one in (place, *place.parents) if one.is_relative_to(root)]
    return found


def left_in(group: Path) -> float:
    """Bytes that a control group has left; endless where it has no limit, or cannot be read.

    Pages of files that nobody used lately are counted as free: the kernel gives them back.
    """
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, taken = int((group / limit).read_text()), int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # "max" is no number
            continue
        return most - taken + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return float("inf")

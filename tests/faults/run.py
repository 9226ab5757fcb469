"""Many faults, drawn from a recorded seed, and what came of them.

python tests/faults/run.py --trials 240 --result results/faults.json    # make faults
python tests/faults/run.py --only damaged --trials 20 --seed 7
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults.places import TRIALS  # noqa: E402
from faults.trials import Outcome, Trial, make_reference  # noqa: E402

from attribution.cli import run_script  # noqa: E402
from attribution.files import write_json  # noqa: E402
from attribution.provenance import origin  # noqa: E402
from pipeline import quiet_libraries  # noqa: E402


def plan(trials: int, only: list[str]) -> list[str]:
    """Names of so many trials, each about as often as TRIALS says, and at least once."""
    names = only or list(TRIALS)
    total = sum(TRIALS[name][1] for name in names)
    counts = {name: max(1, round(trials * TRIALS[name][1] / total)) for name in names}
    return [name for name in names for _ in range(counts[name])]


def table(found: list[tuple[str, Outcome]]) -> str:
    """One line a kind of trial and what happened."""
    counts = Counter((name, outcome.what, outcome.passed) for name, outcome in found)
    words = {True: "passed", False: "FAILED", None: "skipped"}
    lines = sorted(
        (name, what, words[passed], count) for (name, what, passed), count in counts.items()
    )
    return "\n".join(f"{count:4}  {word}  {name}: {what}" for name, what, word, count in lines)


def main(argv=None) -> None:
    """Runs the trials; ends with status 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trials", type=int, default=240, help="how many (240)")
    add("--seed", type=int, default=0, help="of everything that is drawn (0)")
    add("--only", nargs="+", choices=tuple(TRIALS), default=[], help="these kinds only (all)")
    add("--result", type=Path, help="JSON with every trial (none)")
    args = parser.parse_args(argv)
    quiet_libraries()
    start, found = time.monotonic(), []
    place = Path(tempfile.mkdtemp(prefix="faults"))
    place.chmod(0o755)
    try:
        reference = make_reference(place / "reference", place / "work")
        for number, name in enumerate(plan(args.trials, args.only)):
            draws = random.Random(f"{args.seed}/{number}/{name}")
            outcome = TRIALS[name][0](Trial(reference, place / "work", draws))
            found.append((name, outcome))
            if outcome.passed is False:
                print(f"trial {number}, {name}: {outcome.what}: {outcome.detail}", flush=True)
            shutil.rmtree(place / "work")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(table(found))
    failed, skipped = (
        sum(outcome.passed is kind for _, outcome in found) for kind in (False, None)
    )
    print(
        f"{len(found)} trials, {failed} failed, {skipped} skipped, {time.monotonic() - start:.0f} s"
    )
    if args.result:
        rows = [
            {"trial": name, "what": o.what, "passed": o.passed, "detail": o.detail}
            for name, o in found
        ]
        write_json(args.result, {"seed": args.seed, "trials": rows, **origin()})
    if failed:
        raise RuntimeError(f"{failed} trials failed")


if __name__ == "__main__":
    sys.exit(run_script(main))

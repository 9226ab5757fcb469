"""Files that a study leaves: JSON, Markdown, arrays, provenance and a figure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from attribution.files import (
    Refused,
    read_json,
    write_bytes,
    write_json,
    write_npz,
)
from attribution.provenance import origin

Draw = Callable[[dict, Path], None]
FIGURES = Path("figure")


def save(
    result: dict,
    stem: Path,
    figure: Path | None = None,
    *,
    markdown: str,
    draw: Draw | None = None,
    arguments: dict,
    device,
    fingerprints: dict[str, str],
    arrays: dict[str, np.ndarray] | None = None,
    compact: bool = False,
) -> None:
    """Writes the result as JSON, its Markdown, its provenance (`.run.json`), and its figure.

    fingerprints: of model and data. arrays: stored in `.npz`, from which tables can be made again
    without retraining.
    """
    write_json(stem.with_suffix(".json"), result, compact=compact)
    write_bytes(stem.with_suffix(".md"), f"{markdown}\n".encode())
    if arrays:
        write_npz(stem.with_suffix(".npz"), **arrays)
    about = {"arguments": {name: str(value) for name, value in arguments.items()}}
    write_json(stem.with_suffix(".run.json"), about | origin(device, fingerprints))
    written = [f"{stem}.json", f"{stem}.md"]
    if figure and draw:
        draw(result, figure)
        written.append(str(figure))
    print(f"wrote {', '.join(written)}")


def redraw(stem: Path, figure: Path, draw: Draw) -> None:
    """Draws the figure of the stored result. Raises Refused if there is none."""
    path = stem.with_suffix(".json")
    result = read_json(path)
    if result is None:
        raise Refused(f"there is no {path}; run without --plot_only first")
    draw(result, figure)

"""What a study leaves in a results folder, and its figure drawn again from there."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from attribution.files import Refused, check_writable, read_json, write_bytes, write_json, write_npz
from attribution.provenance import check_clean, is_published, origin

Draw = Callable[[dict, Path], None]
FIGURES = Path("figure")


def no_figure(result: dict, path: Path) -> None:
    """Of a result that has none."""


def figure_paths(study: str, data_name: str, asked: Path | None) -> list[Path]:
    """Where the figure of a study ("lds", "counterfactual") goes: as asked, else one a data set and
    the latest.
    """
    return [asked] if asked else [FIGURES / f"{study}_{data_name}.png", FIGURES / f"{study}.png"]


def check_places(stem: Path, figures: Sequence[Path] = ()) -> None:
    """Raises Refused where results or figures could not or should not be written, before the long
    work begins.
    """
    check_clean(stem.parent)
    check_writable(*{stem.parent, *(path.parent for path in figures)})
    if is_published(path := stem.with_suffix(".json")):
        print(
            f"{path} is this project's own result and will be replaced; --results_dir keeps it",
            file=sys.stderr,
        )


def save(
    result: dict,
    stem: Path,
    figures: Sequence[Path] = (),
    *,
    markdown: str,
    draw: Draw = no_figure,
    arguments: dict,
    device,
    fingerprints: dict[str, str],
    arrays: dict[str, np.ndarray] | None = None,
    compact: bool = False,
) -> None:
    """Writes the result as JSON, its Markdown, where it comes from (`.run.json`), and its figures.

    fingerprints: of model and data. arrays: kept in `.npz`, so that tables can be made again
    without retraining.
    """
    around = {"arguments": {name: str(value) for name, value in arguments.items()}}
    write_json(stem.with_suffix(".json"), result, compact=compact)
    write_bytes(stem.with_suffix(".md"), (markdown + "\n").encode())
    if arrays:
        write_npz(stem.with_suffix(".npz"), **arrays)
    write_json(stem.with_suffix(".run.json"), around | origin(device, fingerprints))
    draw_all(result, figures, draw)
    print(f"wrote {', '.join(map(str, (f'{stem}.json', f'{stem}.md', *figures[:1])))}")


def draw_all(result: dict, figures: Sequence[Path], draw: Draw) -> None:
    """The figure at every path; the later ones are copies of the first."""
    if figures:
        draw(result, figures[0])
    for path in figures[1:]:
        write_bytes(path, figures[0].read_bytes())


def redraw(stem: Path, figures: list[Path], draw: Draw) -> None:
    """The figures of the stored result. Raises Refused where there is none."""
    path = stem.with_suffix(".json")
    if (result := read_json(path)) is None:
        raise Refused(f"there is no {path}; run without --plot_only first")
    draw_all(result, figures, draw)

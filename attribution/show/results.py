"""Files that a study leaves: JSON, Markdown, arrays, provenance and a figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.files import (
    Refused,
    check_file,
    describe_parts,
    read_json,
    write_bytes,
    write_json,
    write_npz,
)

Draw = Callable[[dict, Path], None]
RUN = ("weights", "training rows", "start")  # the parts of a fingerprint that tell runs apart


@dataclass(frozen=True)
class Place:
    """Place of a study: STEM.json, .md, .npz and .run.json, and its figure, if it has one."""

    stem: Path
    figure: Path | None = None

    def file(self, suffix: str) -> Path:
        """The file with this suffix; the name of a data set may have dots."""
        return self.stem.with_name(self.stem.name + suffix)

    def foreign(self, fingerprints: dict[str, str]) -> list[str]:
        """Parts in which the run behind the stored study differs from the run with these
        fingerprints; empty for the same run.
        """
        record = read_json(self.file(".run.json")) or {}
        made = record.get("fingerprints", {})
        return [part for part in RUN if made.get(part) != fingerprints.get(part)]

    def check(self, fingerprints: dict[str, str] | None = None, dry_run: bool = False) -> None:
        """Raises Refused, before long work, where nothing can be written, or where a study of
        another run would be replaced.

        fingerprints: of the run; None: whatever is there is replaced. dry_run: whether nothing will
        be written, and no folder may be made to try it.
        """
        path = self.file(".json")
        if fingerprints and path.exists() and (parts := self.foreign(fingerprints)):
            raise Refused(
                f"{path} is a study of a run with {describe_parts(parts)}; name another "
                "--results_dir, or delete the file"
            )
        if dry_run:
            return
        for suffix in (".json", ".md", ".npz", ".run.json"):
            check_file(self.file(suffix), "--results_dir")
        self.check_figure()

    def check_figure(self) -> None:
        """Raises Refused where the figure, if there is one, cannot be written."""
        if self.figure is None:
            return
        if self.figure.suffix.lower() != ".png":
            raise Refused(f"--figure_path: {self.figure} will be a PNG; let its name end in .png")
        check_file(self.figure, "--figure_path")


def place_of(
    study: str,
    run_folder: Path,
    results_dir: Path | None = None,
    figure_path: Path | None = None,
    end: str = "",
) -> Place:
    """Place of the study of this name: below the run's folder, or with the name of its data set in
    another folder.

    results_dir, figure_path: as given, or None. end: of the study's name.
    """
    stem = run_folder / "studies" / f"{study}{end}"
    if results_dir is not None:
        stem = results_dir / f"{study}_{run_folder.name}{end}"
    return Place(stem, figure_path or stem.with_name(f"{stem.name}.png"))


def save(
    result: dict,
    place: Place,
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
    from attribution.provenance import origin  # it imports torch, which `redraw` does not need

    about = {"arguments": {name: str(value) for name, value in arguments.items()}}
    # First, so that no result is without its origin if the process dies in between.
    write_json(place.file(".run.json"), about | origin(device, fingerprints))
    write_json(place.file(".json"), result, compact=compact)
    write_bytes(place.file(".md"), f"{markdown}\n".encode())
    if arrays:
        write_npz(place.file(".npz"), **arrays)
    written = [str(place.file(".json")), str(place.file(".md"))]
    if place.figure and draw:
        draw(result, place.figure)
        written.append(str(place.figure))
    print(f"wrote {', '.join(written)}")


def redraw(place: Place, draw: Draw) -> None:
    """Draws the figure of the stored result. Raises Refused if there is none."""
    assert place.figure is not None
    path = place.file(".json")
    result = read_json(path)
    if result is None:
        raise Refused(f"there is no {path}; run without --plot_only first")
    place.check_figure()
    draw(result, place.figure)
    print(f"wrote {place.figure}")

"""What a study leaves in a results folder, and its figure drawn again from there."""

from pathlib import Path

from attribution.files import Refused, environment, read_json, write_bytes, write_json


def save(
    result: dict, stem: Path, figure_path: Path, *, markdown: str, draw, arguments: dict, device, compact: bool = False
) -> None:  # fmt: skip
    """Writes the result as JSON, its Markdown, what surrounded the run (`.run.json`), and draw(result, figure_path)."""
    write_json(stem.with_suffix(".json"), result, compact=compact)
    write_bytes(stem.with_suffix(".md"), (markdown + "\n").encode())
    arguments = {name: str(value) for name, value in arguments.items()}
    write_json(stem.with_suffix(".run.json"), {"arguments": arguments, **environment(device)})
    draw(result, figure_path)
    print(f"wrote {stem}.json, {stem}.md and {figure_path}")


def redraw(stem: Path, figure_path: Path, draw) -> None:
    """draw(result, figure_path) with the stored result. Raises Refused where there is none."""
    path = stem.with_suffix(".json")
    if (result := read_json(path)) is None:
        raise Refused(f"there is no {path}; run without --plot_only first")
    draw(result, figure_path)

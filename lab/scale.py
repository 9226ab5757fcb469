"""Growth of seconds and memory with the training rows: generated rows, the demo's BERT, one epoch.

    python -m lab.scale                               # 25,000 to 400,000 rows; about an hour
    python -m lab.scale --factor_strategy replay      # 2,048 to 16,384 rows
    python -m lab.scale --sizes 1000 2000             # a trial

Rows are in mnli's columns and have about 24 tokens, there are 32 queries, and factors are fitted on
all rows. Every step is a process with the commands that a user gives: opening the rows, training,
the phases of the analysis, showing one query. One JSON a size is below --work_dir, and what is
there is not measured again. Exponents are fitted over sizes that take above 10 s. The result is
RESULTS_DIR/scale.json, of a replay scale_replay.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np

from attribution.cli import run_script
from attribution.files import Refused, check_file, read_json, write_json
from attribution.provenance import command, environment
from lab.common import ROOT, add_results_argument, write_tables
from lab.timings import scale_table

SIZES = {
    "ekfac": (25_000, 50_000, 100_000, 200_000, 400_000),
    "replay": (2_048, 4_096, 8_192, 16_384),
}
QUERIES = 32
WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "film",
    "plot",
    "actor",
    "very",
    "quite",
    "old",
    "new",
    "city",
    "house",
    "river",
    "say",
    "think",
    "time",
    "day",
    "book",
    "music",
)
OPEN = (
    "from pipeline import *; get_glue_dataset('mnli', 'train', "
    "tokenizer=get_tokenizer(str(DEMO_MODEL), 'mnli'), dataset_path={!r})"
)


def generate(folder: Path, count: int) -> None:
    """Writes `count` training rows and QUERIES validation rows of random words, the same for the
    same count.
    """
    draws = np.random.default_rng(0)

    def rows(number: int) -> datasets.Dataset:
        texts = [
            [" ".join(WORDS[i] for i in draws.integers(len(WORDS), size=9)) for _ in range(number)]
            for _ in "ab"
        ]
        labels = draws.integers(0, 3, number)
        return datasets.Dataset.from_dict(
            {"premise": texts[0], "hypothesis": texts[1], "label": labels}
        )

    sizes = {"train": count, "validation_matched": QUERIES, "validation_mismatched": QUERIES}
    write_tables(folder, "mnli", {split: rows(number) for split, number in sizes.items()})


def child(*command: object) -> dict[str, float]:
    """Runs python with these arguments: its seconds, and its peak of resident memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise Refused(f"this failed: {' '.join(map(str, command))}")
    return {"seconds": time.perf_counter() - start, "peak": usage.ru_maxrss * 1024.0}


def measure(work: Path, count: int, strategy: str) -> dict:
    """Step -> seconds and peak memory for `count` training rows; phases share the peak of their
    process.
    """
    data, runs = work / f"data_{count}", work / f"runs_{count}"
    generate(data, count)
    common = ["--dataset_name", "mnli", "--checkpoint_dir", runs]
    start = ["--dataset_path", data, "--model_name_or_path", ROOT / "demo", "--num_train_epochs", 1]
    found = {"opening": child("-c", OPEN.format(str(data)))}
    found["training"] = child("train.py", *common, *start)
    analyzed = [*common, "--max_queries", QUERIES, "--factor_strategy", strategy]
    if strategy == "ekfac":
        analyzed += ["--max_factor_rows", count]
    whole = child("analyze.py", *analyzed, "--overwrite")
    found["whole process"] = whole
    scores = runs / "mnli/influence/scores" / strategy
    record = json.loads((scores / "pairwise_scores.json").read_text())
    for phase, seconds in record["seconds"].items():
        found[phase] = {"seconds": seconds, "peak": whole["peak"]}
    found["showing"] = child("analyze.py", *analyzed, "--query_index", 0)
    return {"steps": found, "fingerprints": record["fingerprint"], **environment("cpu")}


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--sizes",
        type=int,
        nargs="+",
        help="training rows (25,000 to 400,000; of a replay 2,048 to 16,384)",
    )
    add("--factor_strategy", choices=SIZES, default="ekfac", help="kind of scores (ekfac)")
    add(
        "--work_dir",
        type=Path,
        default=Path("checkpoints/scale"),
        help="data, runs, JSON (checkpoints/scale)",
    )
    add_results_argument(add, "scale.json")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Measures what is missing, and prints the table."""
    args = parse_args(argv)
    strategy = args.factor_strategy
    place = args.results_dir / ("scale.json" if strategy == "ekfac" else "scale_replay.json")
    check_file(place, "--results_dir")
    measured = {}
    for size in args.sizes or SIZES[strategy]:
        path = args.work_dir.resolve() / strategy / f"{size}.json"
        if (known := read_json(path)) is None:
            print(f"measuring {size:,} rows", flush=True)
            write_json(path, known := measure(path.parent, size, strategy))
        measured[size] = known
    made = {name: part for name, part in measured[max(measured)].items() if name != "steps"}
    sizes = {str(size): found["steps"] for size, found in measured.items()}
    result = {"sizes": sizes, **made, "command": command()}
    write_json(place, result)
    print(scale_table(result))


if __name__ == "__main__":
    sys.exit(run_script(main))

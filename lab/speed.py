"""Stock kronfluence padded to 128 tokens against this project: seconds, memory and agreement.

    python -m lab.speed --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR"
    python -m lab.speed --cases demo                    # needs no other data

Every arm is a fresh process with the same command that a user gives, in the order A B A B, threads
pinned, on the same checkpoint, rows, damping and seed. Seconds are those that analyze.py records;
memory is the process's peak. Each measurement is one JSON below --work_dir, and what is there is
not measured again: interrupt it at will, or delete the folder to start anew. The result is
RESULTS_DIR/speed.json and the table speed.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from attribution.cli import check_numbers, run_script
from attribution.evidence import stats
from attribution.files import Refused, check_file, read_json, write_bytes, write_json
from lab import timings
from lab.common import ROOT, add_results_argument, origin_of

PHASES = ("covariance", "eigendecomposition", "lambda", "pairwise")
ROWS, QUERIES = (256, 512, 1024), (32, 64, 128)  # how seconds grow with either
REFERENCES = {  # what tells rounding in stock from error in ours; run once, for scores only
    "stock, covariance sums in float64": ["--stock", "--covariance_dtype", "float64"],
}


@dataclass(frozen=True)
class Case:
    """A checkpoint to be analyzed: task, training rows, queries."""

    dataset: str
    rows: int
    queries: int
    epochs: int = 3
    references: bool = False  # whether REFERENCES are run too

    @property
    def name(self) -> str:
        """Data set and rows, as files of the case are named."""
        return f"{self.dataset}_{self.rows}"


CASES = {
    "sst2": Case("sst2", 512, 64, references=True),
    "rte": Case("rte", 256, 64, 1),
    "demo": Case("demo", 1000, 100, 8),
}


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--cases",
        nargs="+",
        choices=tuple(CASES),
        default=list(CASES),
        help="what is compared with stock (all)",
    )
    add("--dataset_path", help="folder or hub id with sst2 and rte (nyu-mll/glue)")
    add(
        "--model_name_or_path", help="folder or hub id of a BERT for sst2 and rte (bert-base-cased)"
    )
    add("--rounds", type=int, default=2, help="how often stock and ours take turns (2)")
    add(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cores and threads of every process (all)",
    )
    add(
        "--work_dir",
        type=Path,
        default=Path("checkpoints/benchmark"),
        help="checkpoints and single measurements (checkpoints/benchmark)",
    )
    add_results_argument(add, "speed.json and speed.md")
    args = parser.parse_args(argv)
    check_numbers(vars(args), "rounds", "threads")
    return args


class Bench:
    """Runs measurements in child processes and keeps what they found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work_dir.resolve()
        cores = sorted(os.sched_getaffinity(0))[: args.threads]
        os.sched_setaffinity(0, cores)  # inherited by every child
        self.variables = os.environ | {
            name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }

    def measure(self, name: str, call) -> dict:
        """The stored measurement of this name, or call()'s, stored."""
        path = self.work / f"{name}.json"
        if (known := read_json(path)) is None:
            print(f"measuring {name}", flush=True)
            write_json(path, known := call())
        return known

    def child(self, *command: object) -> tuple[float, float]:
        """Runs python with these arguments; returns its peak of resident memory in bytes, and its
        seconds, in all.
        """
        arguments, start = [sys.executable, *map(str, command)], time.perf_counter()
        log = self.work / "log.txt"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                arguments, cwd=ROOT, env=self.variables, stdout=output, stderr=output
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise Refused(f"this failed: {' '.join(arguments)}; see {log}")
        return usage.ru_maxrss * 1024.0, time.perf_counter() - start

    # --- single measurements ---

    def checkpoint(self, case: Case) -> Path:
        """The folder of a trained model; trains it where there is none."""
        folder = self.work / case.name
        if not (folder / case.dataset / "run.json").exists():
            print(f"training {case.name}", flush=True)
            where = {
                "--dataset_path": self.args.dataset_path,
                "--model_name_or_path": self.args.model_name_or_path,
            }
            where = {} if case.dataset == "demo" else where
            given = [part for name, value in where.items() if value for part in (name, value)]
            rate = [] if case.dataset == "demo" else ["--learning_rate", 1e-4]
            size = [
                "--max_train_samples",
                case.rows,
                "--num_train_epochs",
                case.epochs,
                "--seed",
                1004,
            ]
            self.child(
                "train.py",
                "--dataset_name",
                case.dataset,
                "--checkpoint_dir",
                folder,
                *given,
                *size,
                *rate,
            )
        return folder

    def fingerprints(self) -> dict[str, str]:
        """Weights and training rows of every checkpoint that was measured."""
        runs = {
            path.parent.parent.name: read_json(path) or {}
            for path in sorted(self.work.glob("*/*/run.json"))
        }
        wanted = {"weights": "weights", "training rows": "train_rows"}
        return {
            f"{name}, {what}": run[key]
            for name, run in runs.items()
            for what, key in wanted.items()
            if key in run
        }

    def analysis(self, case: Case, label: str, *flags: object) -> dict:
        """One analysis in a folder of its own: seconds of each phase, peak memory in bytes, where
        its scores are.
        """

        def run() -> dict:
            source, target = self.checkpoint(case) / case.dataset, self.work / label / case.dataset
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("influence"))
            command = [
                "analyze.py",
                "--dataset_name",
                case.dataset,
                "--checkpoint_dir",
                self.work / label,
            ]
            peak, whole = self.child(*command, "--max_queries", case.queries, *flags)
            scores = next((target / "influence/scores").iterdir())
            seconds = json.loads((scores / "pairwise_scores.json").read_text())["seconds"]
            shutil.rmtree(target / "influence/factors")
            path = scores / "pairwise_scores.safetensors"
            seconds["whole process"] = whole  # imports, tokens and the model included
            return {"seconds": seconds, "peak": peak, "scores": str(path.relative_to(self.work))}

        return self.measure(label, run)

    def scores(self, measured: dict) -> np.ndarray:
        """The scores (Q, N) that a measured analysis stored."""
        return load_file(self.work / measured["scores"])["all_modules"]

    def inner(self, label: str, what: str, case: Case, *extra: object) -> dict:
        """A measurement by `lab.inner`, which looks into one process."""

        def run() -> dict:
            output = self.work / f"{label}.output.json"
            where = ["--checkpoint_dir", self.checkpoint(case), "--dataset_name", case.dataset]
            self.child(
                "-m",
                "lab.inner",
                what,
                *where,
                "--max_queries",
                case.queries,
                "--output",
                output,
                *extra,
            )
            found = read_json(output)
            assert found is not None  # just written
            return found

        return self.measure(label, run)


# --- what is compared -----------------------------------------------------------------------------


def compare(bench: Bench, case: Case) -> dict:
    """Stock against ours, in turns: median seconds of each phase, ratios, peaks, agreement."""
    arms: dict[str, list[dict]] = {"stock": [], "ours": []}
    for i in range(bench.args.rounds):
        for arm, flags in (("stock", ["--stock"]), ("ours", ["--fisher", "sampled"])):
            arms[arm].append(bench.analysis(case, f"{case.name}_{arm}_{i}", *flags))
    stock, ours = (bench.scores(arms[arm][0]) for arm in ("stock", "ours"))
    agreement = {"stock": {"ours": stats.mean_spearman(ours, stock)}}
    for name, flags in REFERENCES.items() if case.references else ():
        other = bench.scores(
            bench.analysis(case, f"{case.name}_{name.replace(',', '').replace(' ', '_')}", *flags)
        )
        agreement["stock"][name] = stats.mean_spearman(other, stock)
        agreement[name] = {"ours": stats.mean_spearman(ours, other)}
    seconds = {arm: middle(runs) for arm, runs in arms.items()}
    for times in seconds.values():
        times["covariance + lambda"] = times["covariance"] + times["lambda"]
    return {
        "rows": case.rows,
        "queries": case.queries,
        "seconds": seconds,
        "times faster": {
            phase: seconds["stock"][phase] / seconds["ours"][phase] for phase in seconds["ours"]
        },
        "peak": {arm: max(run["peak"] for run in runs) for arm, runs in arms.items()},
        "spearman": agreement,
        "single": {arm: [run["seconds"]["all"] for run in runs] for arm, runs in arms.items()},
    }


def middle(runs: list[dict]) -> dict[str, float]:
    """Median seconds of each phase over runs, and of what all of them have of "all" and "whole
    process".
    """
    known = [
        name
        for name in (*PHASES, "all", "whole process")
        if all(name in run["seconds"] for run in runs)
    ]
    return {name: float(np.median([run["seconds"][name] for run in runs])) for name in known}


def precision(bench: Bench, case: Case) -> dict:
    """Effect of bfloat16 and low rank: seconds against float32, and agreement with it."""
    variants = {"float32": [], "bfloat16": ["--use_half_precision"]}
    variants |= {f"rank {rank}": ["--query_gradient_rank", rank] for rank in (8, 32)}
    runs: dict[str, list[dict]] = {name: [] for name in variants}
    for i in range(bench.args.rounds):
        for name, flags in variants.items():
            runs[name].append(
                bench.analysis(case, f"{case.name}_{name.replace(' ', '')}_{i}", *flags)
            )
    reference = bench.scores(runs["float32"][0])
    return {
        name: {
            "seconds": middle(measured),
            "spearman": stats.mean_spearman(bench.scores(measured[0]), reference),
        }
        for name, measured in runs.items()
    }


def growth(bench: Bench) -> dict:
    """Seconds of each phase against rows and against queries, and the exponents of power laws
    through them.
    """
    result = {}
    for what, sizes in (("rows", ROWS), ("queries", QUERIES)):
        cases = [
            Case("sst2", size, 64) if what == "rows" else Case("sst2", 512, size) for size in sizes
        ]
        runs = [
            middle(
                [
                    bench.analysis(case, f"growth_{case.rows}x{case.queries}_{i}")
                    for i in range(bench.args.rounds)
                ]
            )
            for case in cases
        ]
        seconds = {phase: [run[phase] for run in runs] for phase in runs[0]}
        slopes = {
            phase: float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
            for phase, values in seconds.items()
        }
        result[what] = {"sizes": list(sizes), "seconds": seconds, "exponents": slopes}
    return result


def training(bench: Bench, case: Case) -> dict:
    """Training rows a second, padded to 128 tokens and as train.py does it, in turns."""
    rates: dict[str, list[float]] = {"padded to 128": [], "ours": []}
    for i in range(bench.args.rounds):
        for name, pad in (("padded to 128", 128), ("ours", 0)):
            label = f"{case.name}_training_{'padded' if pad else 'ours'}_{i}"
            rates[name].append(
                bench.inner(label, "training", case, "--pad_to", pad)["rows_per_second"]
            )
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {"rows per second": medians, "times faster": medians["ours"] / medians["padded to 128"]}


def pairwise_rate(bench: Bench, case: Case, compared: dict) -> dict:
    """Multiply-adds a second of the pairwise phase as a share of what its own matrix products reach
    alone.
    """
    found = bench.inner(f"{case.name}_products", "products", case)
    seconds = compared["seconds"]["ours"]["pairwise"]
    rate, alone = found["multiply_adds"] / seconds, found["multiply_adds"] / found["seconds_alone"]
    return found | {"seconds": seconds, "rate": rate, "rate_alone": alone, "share": rate / alone}


def main(argv=None) -> None:
    """Measures what is missing, writes and prints the tables."""
    args = parse_args(argv)
    check_file(args.results_dir / "speed.json", "--results_dir")
    bench = Bench(args)
    bench.work.mkdir(parents=True, exist_ok=True)
    result: dict = {"cases": {name: compare(bench, CASES[name]) for name in args.cases}}
    if "sst2" in args.cases:
        case = CASES["sst2"]
        result["precision"], result["growth"] = precision(bench, case), growth(bench)
        result["training"] = training(bench, case)
        result["pairwise rate"] = pairwise_rate(bench, case, result["cases"]["sst2"])
        result["profile"] = bench.inner(f"{case.name}_profile", "profile", case)
    result |= {
        "threads": args.threads,
        "rounds": args.rounds,
        **origin_of(args, "cpu", bench.fingerprints()),
    }
    write_json(args.results_dir / "speed.json", result)
    write_bytes(args.results_dir / "speed.md", (timings.speed_report(result) + "\n").encode())
    print(timings.speed_report(result))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""SST-2 with BERT-base's shape on one GPU: what a card does in some minutes, best first.

    python -m lab.gpu --minutes 9     # on this GPU: RESULTS_DIR/gpu.json
    python -m lab.gpu --estimate      # by arithmetic, for an A100: RESULTS_DIR/gpu_estimate.json
    python -m lab.gpu --tasks         # GLUE's tasks, by arithmetic: RESULTS_DIR/glue_tasks.json

Ours in four precisions, the tests against the CPU, stock, SST-2 in full, a replay, retrains side by
side, and memory that runs out. Each item is one JSON below --work_dir, written as soon as it is
there, and what is there is not measured again; an item that the minutes do not hold is left for the
next start. Weights are random: seconds do not depend on them. `lab.estimates` describes how the
estimate is counted, which is scaled by what this card reaches in products and copies.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.numpy import load_file

from attribution.cli import check_numbers, run_script
from attribution.evidence.stats import mean_spearman
from attribution.files import Refused, check_writable, read_json, write_json
from attribution.provenance import origin
from attribution.show.tables import markdown
from attribution.training.run import Run
from lab.common import ROOT, add_results_argument, origin_of
from lab.estimates import PUBLISHED, QUERY_BATCH, ROWS, Work, estimate, task_table
from lab.timings import gpu_measured, gpu_table
from pipeline import DEMO_MODEL, get_tokenizer

FLAGS: dict[str, list[str]] = {
    "float32": [],
    "tf32": ["--tf32"],
    "bfloat16": ["--use_half_precision"],
}
FLAGS["bfloat16 and tf32"] = [*FLAGS["bfloat16"], *FLAGS["tf32"]]
FLAGS["stock, float32"] = ["--stock"]
RIGHT = 0.99  # mean Spearman with float32 from which a precision is right
REPLAYED = 16_384  # rows of the replay
RETRAINED = 2048  # rows of the run that is retrained on halves
JOBS = (1, 4, 8)  # retrains on the card at a time
GIB = 6.0  # memory in which an analysis must end all the same
LIMITED = (  # a script with so much of the card's memory
    "import sys, torch; torch.cuda.set_per_process_memory_fraction(float(sys.argv[1])); "
    "from attribution.cli import run_script; import analyze; "
    "sys.exit(run_script(analyze.main, sys.argv[2:]))"
)


def card_rates(device: str = "cuda", size: int = 8192, repeats: int = 10) -> dict[str, float]:
    """Rates of the card: multiply-adds a second in products of (size, size), and bytes a second
    in copies.
    """
    rates, pairs = (
        {},
        (("float64", torch.float64), ("float32", torch.float32), ("tf32", torch.float32)),
    )
    for name, dtype in (*pairs, ("bfloat16", torch.bfloat16)):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        x = torch.randn(size, size, device=device).to(dtype)
        rates[name] = size**3 / seconds_of(lambda x=x: x @ x, device, repeats)
    torch.set_float32_matmul_precision("highest")
    x = torch.empty(size, size, device=device)
    rates["bytes"] = 2 * x.nbytes / seconds_of(x.clone, device, repeats)  # read and written
    return rates


def seconds_of(call, device: str, repeats: int) -> float:
    """Seconds of one call, on average, after one that does not count."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def random_start(folder: Path, tokenizer_of: str | None) -> None:
    """Saves BERT-base's shape with random weights and that model's tokenizer (the demo's)."""
    tokenizer = get_tokenizer(tokenizer_of or str(DEMO_MODEL), "sst2")
    torch.manual_seed(0)
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=2, **names)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass
class Session:
    """Minutes on a card, and what was measured in them.

    work: folder of the measurements. seconds: of the budget. data: arguments that name the data.
    rows: of the analyses in each precision.
    """

    work: Path
    seconds: float
    data: list[str]
    rows: int
    begun: float = field(default_factory=time.monotonic)
    took: dict[str, float] = field(default_factory=dict)  # item -> seconds of this start

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.begun)

    def take(self, name: str, call: Callable[[], dict]) -> dict | None:
        """What call() measures, or has measured before; None if there is no time left, or too
        little.
        """
        path = self.work / f"{name}.json"
        if (known := read_json(path)) is not None:
            return known
        if self.left <= 0:
            return None
        start = time.monotonic()
        try:
            found = call()
        except subprocess.TimeoutExpired:
            found = None
        self.took[name] = time.monotonic() - start
        share = self.took[name] / self.seconds
        end = "" if found is not None else ", not done"
        print(f"{name}: {self.took[name]:.0f} s, {share:.0%} of the time{end}", flush=True)
        if found is not None:
            write_json(path, found)
        return found

    def run(self, *command: str, gib: float | None = None) -> str:
        """Output of a script with its arguments, which ends with the time. gib: memory that it may
        take of the card's. Raises Refused if it fails.
        """
        start = [str(ROOT / command[0])]
        if gib is not None:
            whole = torch.cuda.get_device_properties(0).total_memory
            start = ["-c", LIMITED, str(gib * 2**30 / whole)]
        done = subprocess.run(
            [sys.executable, *start, *command[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=self.left,
        )
        if done.returncode:
            raise Refused(f"{' '.join(command)} failed: {done.stderr[-500:]}")
        return done.stdout + done.stderr

    def place(self, rows: int) -> list[str]:
        """Arguments that name the run of so many rows."""
        return ["--dataset_name", "sst2", "--checkpoint_dir", str(self.work / f"{rows}_rows")]

    def make(self, rows: int, *how: str) -> None:
        """Makes the run of so many rows, unless it exists. how: arguments of train.py."""
        if not (self.work / f"{rows}_rows/sst2/run.json").exists():
            limit = ["--max_train_samples", str(rows)]
            self.run("train.py", *self.place(rows), *self.data, *limit, *how)

    def trained(self, rows: int) -> dict:
        """Fine-tunes the random weights for an epoch, so that retrains have a recipe."""
        start = self.work / "random"
        if not start.exists():
            random_start(start, None)
        self.make(rows, "--model_name_or_path", str(start), "--num_train_epochs", "1")
        return {}

    def analyzed(self, name: str, rows: int, gib: float | None = None) -> dict:
        """Seconds of each phase of analyze.py in the precision of this name, and of the whole
        process. Keeps the scores beside.
        """
        flags = ["--query_batch_size", str(QUERY_BATCH), "--train_batch_size", "128", "--overwrite"]
        start = time.monotonic()
        said = self.run("analyze.py", *self.place(rows), *flags, *FLAGS[name], gib=gib)
        whole = time.monotonic() - start
        kind = "_half" * ("bfloat16" in name) + "_stock" * ("stock" in name)
        scores = self.work / f"{rows}_rows/sst2/influence/scores/ekfac{kind}"
        record = json.loads((scores / "pairwise_scores.json").read_text())
        end = "" if gib is None else " limited"
        shutil.copyfile(scores / "pairwise_scores.safetensors", self.scores(name + end, rows))
        return record["seconds"] | {"whole process": whole, "shrunk": said.count("out of memory")}

    def scores(self, name: str, rows: int) -> Path:
        """Place of the kept scores of a precision."""
        return self.work / f"{name}, {rows}.safetensors"

    def agreement(self, name: str) -> float:
        """Mean Spearman correlation of a precision's scores with those of float32."""
        found = (load_file(self.scores(one, self.rows))["all_modules"] for one in (name, "float32"))
        return mean_spearman(*found)

    def fastest(self) -> str:
        """The fastest precision, of those measured, whose scores are right."""
        seconds = {}
        for name in FLAGS:
            record = read_json(self.work / f"{name}.json")
            if record and "stock" not in name and self.agreement(name) >= RIGHT:
                seconds[name] = record["all"]
        return min(seconds, key=seconds.__getitem__, default="float32")

    def tests(self) -> dict:
        """The tests that compare this card with the CPU."""
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=self.left)
        return {"passed": done.returncode == 0, "end": done.stdout[-300:]}

    def adopted(self, rows: int) -> None:
        """Makes a run of so many rows with the weights of the trained one."""
        self.make(rows, "--adopt", str(self.work / f"{self.rows}_rows/sst2"))

    def in_full(self, rows: int) -> dict:
        """All rows in the fastest precision that is right."""
        name = self.fastest()
        self.adopted(rows)
        return self.analyzed(name, rows) | {"precision": name}

    def replayed(self, rows: int) -> dict:
        """Seconds of a replay."""
        self.adopted(rows)
        start = time.monotonic()
        self.run("analyze.py", *self.place(rows), "--factor_strategy", "replay")
        return {"whole process": time.monotonic() - start}

    def retrained(self, jobs: int, rows: int) -> dict:
        """Retrains a second, on halves of the rows, with so many at a time."""
        self.trained(rows)
        count = max(4, 2 * jobs)
        flags = ["--num_masks", str(count), "--num_repeats", "1", "--jobs_per_device", str(jobs)]
        seeds = ["--retrain_seed", str(1000 * jobs), "--mask_seed", str(jobs)]
        start = time.monotonic()
        self.run("evaluate_lds.py", *self.place(rows), *flags, *seeds, "--num_bootstrap", "10")
        return {"retrains a second": count / (time.monotonic() - start)}

    def measure(self, whole: int, replayed: int, retrained: int) -> dict[str, dict]:
        """Everything that there is time for, best first: name -> what was measured."""
        rows = self.rows
        items: dict[str, Callable[[], dict]] = {"training": lambda: self.trained(rows)}
        for name in ("tf32", "float32", "bfloat16", "bfloat16 and tf32"):
            items[name] = lambda name=name: self.analyzed(name, rows)
        items["tests"] = self.tests
        items["stock, float32"] = lambda: self.analyzed("stock, float32", rows)
        items["in full"] = lambda: self.in_full(whole)
        items["replay"] = lambda: self.replayed(replayed)
        for jobs in JOBS:
            items[f"retrains, {jobs} at a time"] = lambda jobs=jobs: self.retrained(jobs, retrained)
        items["out of memory"] = lambda: self.analyzed("float32", rows, GIB)
        measured = {name: self.take(name, call) for name, call in items.items()}
        return {name: found for name, found in measured.items() if found is not None}


def work_of(session: Session) -> Work:
    """Rows, queries and tokens of what was measured, and the memory of this card."""
    folder = session.work / f"{session.rows}_rows"
    train, queries = Run.open(folder, "sst2").rows(2000)
    means = [
        float(lengths.mean())
        for lengths in (train.lengths, train.lengths.astype(float) ** 2, queries.lengths)
    ]
    return Work(len(train), len(queries), *means, torch.cuda.get_device_properties(0).total_memory)


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--estimate",
        action="store_true",
        help="write and print the estimate for an A100; measure nothing",
    )
    add("--minutes", type=float, default=9.0, help="time on the card (9)")
    add("--dataset_path", help="folder or hub id with sst2 (nyu-mll/glue)")
    add("--rows", type=int, default=4096, help="training rows in each precision (4096)")
    add(
        "--work_dir",
        type=Path,
        default=Path("checkpoints/gpu"),
        help="single measurements (checkpoints/gpu)",
    )
    add_results_argument(add, "the JSON")
    add(
        "--tasks", action="store_true", help="write and print what GLUE's tasks take, by arithmetic"
    )
    args = parser.parse_args(argv)
    check_numbers(vars(args), "rows", "minutes")
    return args


def main(argv=None) -> None:
    """Prints published and estimated seconds, or measures; stores what is new."""
    args = parse_args(argv)
    check_writable(args.results_dir)
    if args.tasks:
        write_json(args.results_dir / "glue_tasks.json", (found := task_table()) | origin())
        print(markdown(**found))
        return
    if args.estimate:
        write_json(args.results_dir / "gpu_estimate.json", estimate() | origin())
        print(gpu_table(PUBLISHED, estimate()))
        return
    if not torch.cuda.is_available():
        raise Refused("there is no GPU here; --estimate needs none")
    data = ["--dataset_path", args.dataset_path] if args.dataset_path else []
    session = Session(args.work_dir.resolve(), 60 * args.minutes, data, args.rows)
    measured = session.measure(ROWS, REPLAYED, RETRAINED)
    for name, found in measured.items():
        if name in FLAGS and "float32" in measured:
            found["Spearman"] = session.agreement(name)
    work = work_of(session)
    card = card_rates()  # last: it keeps memory
    sizes = {"rows": work.rows, "queries": work.queries}
    result = sizes | {"rates": card, "estimate": estimate(card, work), "measured": measured}
    result |= origin_of(args, "cuda")
    write_json(args.results_dir / "gpu.json", result)
    print(gpu_measured(result))


if __name__ == "__main__":
    sys.exit(run_script(main))

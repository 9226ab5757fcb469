"""SST-2 with BERT-base on one GPU: seconds of ours, and those published for stock kronfluence.

    python -m lab.gpu --estimate      # by arithmetic, for an A100: RESULTS_DIR/gpu_estimate.json
    python -m lab.gpu                 # float32, TF32 and bfloat16 on this GPU: RESULTS_DIR/gpu.json
    python -m lab.gpu --tasks         # GLUE's tasks, by arithmetic: RESULTS_DIR/glue_tasks.json
    python -m lab.gpu --random_weights --rows 8192      # BERT-base's shape without the hub

Each measurement is one JSON below --work_dir, and what is there is not measured again. The estimate
is scaled by what this card reaches in products and copies, which is printed. `lab.estimates`
describes how it is counted.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
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
from lab.common import ROOT, add_results_argument
from lab.estimates import PUBLISHED, QUERY_BATCH, ROWS, Work, estimate, task_table
from lab.timings import gpu_measured, gpu_table
from pipeline import DEMO_MODEL, get_tokenizer

FLAGS: dict[str, list[str]] = {
    "float32": [],
    "tf32": ["--tf32"],
    "bfloat16": ["--use_half_precision"],
}
FLAGS["bfloat16 and tf32"] = [*FLAGS["bfloat16"], *FLAGS["tf32"]]


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


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of analyze.py on this GPU, "whole process", and "Spearman" with
    float32.

    Trains for one epoch first; random weights are taken as they are. What is in --work_dir is not
    measured again.
    """
    work, start = args.work_dir.resolve() / f"{args.rows}_rows", args.model_name_or_path
    common = ["--dataset_name", "sst2", "--checkpoint_dir", str(work)]
    if not (work / "sst2/run.json").exists():
        train = [*common, "--max_train_samples", str(args.rows)]
        if args.random_weights:
            random_start(work / "random", start)
            train += ["--adopt", str(work / "random")]
        else:
            train += ["--num_train_epochs", "1", "--seed", "1004"]
        places = {"--dataset_path": args.dataset_path}
        places |= {} if args.random_weights else {"--model_name_or_path": start}
        train += [part for name, value in places.items() if value for part in (name, value)]
        subprocess.run([sys.executable, ROOT / "train.py", *train], check=True)
    for name in args.precisions:
        if not (work / f"{name}.json").exists():
            measure_one(work, name, common)
    result = {
        name: read_json(work / f"{name}.json") or {}
        for name in FLAGS
        if (work / f"{name}.json").exists()
    }
    scores = {name: load_file(work / f"{name}.safetensors")["all_modules"] for name in result}
    for name in result if "float32" in result else ():
        result[name]["Spearman"] = mean_spearman(scores[name], scores["float32"])
    return result


def measure_one(work: Path, name: str, common: list[str]) -> None:
    """Runs analyze.py in this precision and keeps its seconds and its scores."""
    sizes = ["--query_batch_size", str(QUERY_BATCH), "--train_batch_size", "128", "--overwrite"]
    start = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "analyze.py", *common, *sizes, *FLAGS[name]], check=True)
    whole = time.perf_counter() - start
    scores = work / "sst2/influence/scores" / ("ekfac_half" if "bfloat16" in name else "ekfac")
    record = json.loads((scores / "pairwise_scores.json").read_text())
    shutil.copyfile(scores / "pairwise_scores.safetensors", work / f"{name}.safetensors")
    write_json(work / f"{name}.json", record["seconds"] | {"whole process": whole})


def work_of(args: argparse.Namespace) -> Work:
    """Rows, queries and tokens of what was measured, and the memory of this card."""
    folder = args.work_dir.resolve() / f"{args.rows}_rows"
    train, queries = Run.open(folder, "sst2", args.dataset_path).rows(2000)
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
    add("--dataset_path", help="folder or hub id with sst2 (nyu-mll/glue)")
    add("--model_name_or_path", help="folder or hub id of a BERT-base (bert-base-cased)")
    add(
        "--random_weights",
        action="store_true",
        help="BERT-base's shape, random, with the tokenizer of that model",
    )
    add("--rows", type=int, default=ROWS, help=f"training rows ({ROWS:,})")
    add(
        "--precisions",
        nargs="+",
        choices=tuple(FLAGS),
        default=list(FLAGS),
        help="what is measured (all)",
    )
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
    check_numbers(vars(args), "rows")
    return args


def main(argv=None) -> None:
    """Prints published and estimated seconds, and measured ones unless --estimate is given; stores
    what is new.
    """
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
    seconds, work = measure(args), work_of(args)
    card = card_rates()  # last: it keeps memory
    found = {
        "rows": work.rows,
        "queries": work.queries,
        "tokens": work.tokens,
        "query_tokens": work.query_tokens,
        "random_weights": args.random_weights,
        "rates": card,
        "estimate": estimate(card, work),
        "measured": seconds,
    }
    path = args.results_dir / "gpu.json"
    every = (read_json(path) or {}).get("sizes", {}) | {str(args.rows): found | origin("cuda")}
    write_json(path, {"sizes": every} | origin("cuda"))
    print(gpu_measured(every))


if __name__ == "__main__":
    sys.exit(run_script(main))

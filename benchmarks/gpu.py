"""SST-2 with BERT-base on one GPU: what this project takes, beside what was published for stock kronfluence.

    python benchmarks/gpu.py --estimate          # by arithmetic, for an A100; needs no GPU; results/gpu_estimate.json
    python benchmarks/gpu.py                     # measures float32, TF32 and bfloat16 on this GPU; results/gpu.json
    python benchmarks/gpu.py --tasks             # every GLUE task on one A100 and on eight, by arithmetic
    python benchmarks/gpu.py --random_weights --precisions float32 tf32     # BERT-base's shape without the hub

Each measurement is one JSON below --work_dir, and what is there is not measured again. The estimate beside it is
scaled by what this card reaches in products and copies, which is printed.

The published seconds stand in results/published.json, with their source: 67,349 rows, 872 queries, padded to 128
tokens, one A100. The estimate counts multiply-adds. Stock's count of a phase, divided by its published seconds, is the
rate that stock reached in that phase. Ours is assumed to reach the same rate. The time in which the memory moves the
per-example gradients that ours writes and reads is added. In half precision only the products of per-example gradients
run in bfloat16; the rest runs in float32, or in TF32 where both are asked for. Covariances are summed in float64,
whose tensor cores have the peak rate of float32 on an A100. Symbols: N rows, Q queries, T tokens of a row, T_q of a
query, P weights of the linear layers, L layers, D hidden size.

    a pass over a token     2 P for forward and backward (inputs' gradients only), 6 L T D for attention
    covariance              sum of D_in^2 (real tokens) and of D_out^2 (all tokens); ours: real tokens, one D_in^2 for
                            query, key and value, of a matrix only blocks on and above the diagonal
    lambda                  P a token for gradients; stock D_in D_out (D_in + D_out) a row for their rotation, ours
                            D_in^2 + D_out^2 a token, D_in^2 once for query, key and value
    pairwise                P a token and pass, Q P a row; stock a pass for every 175 queries, its published batch.
                            Ours one pass, because it holds the queries' tokens (15 GB in float32); lambda's rotation;
                            Q T_q P for query gradients, again for every group of batches
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from attribution.evidence.stats import mean_spearman  # noqa: E402
from attribution.files import Refused, read_json, run_script, write_json  # noqa: E402
from attribution.influence.contractions import GRAM_STEP  # noqa: E402
from attribution.provenance import check_clean, origin  # noqa: E402
from attribution.show.pages import read_result  # noqa: E402
from attribution.show.tables import markdown  # noqa: E402
from attribution.show.timings import gpu_table  # noqa: E402
from pipeline import DEMO_MODEL, get_glue_dataset, get_tokenizer, load_tables  # noqa: E402

PUBLISHED = read_result(ROOT / "results", "published")["gpu_seconds"]["seconds"]  # precision -> phase -> seconds
ROWS, QUERIES, LAYERS, HIDDEN, INNER, PADDED = 67_349, 872, 12, 768, 3072, 128
QUERY_BATCH = 175  # of the published command
# Mean of T and of T^2 over the training rows of SST-2 and mean of T_q, in BERT's word pieces; groups of at most
# 128 x 128 tokens.
TOKENS, SQUARED, QUERY_TOKENS, GROUPS = 13.32, 268.5, 25.16, 57
# Of an A100 of 40 GB (that of 80 GB moves more): peak multiply-adds a second, of which a FLOP is half, and bytes.
A100 = {"float64": 9.75e12, "float32": 9.75e12, "tf32": 78e12, "bfloat16": 156e12, "bytes": 1.555e12}
FLAGS: dict[str, list[str]] = {"float32": [], "tf32": ["--tf32"], "bfloat16": ["--use_half_precision"]}
FLAGS["bfloat16 and tf32"] = [*FLAGS["bfloat16"], *FLAGS["tf32"]]
# (D_in, D_out, how many modules, how many of them read an input of their own)
SHAPES = (
    (HIDDEN, HIDDEN, 4 * LAYERS + 1, 2 * LAYERS + 1),
    (HIDDEN, INNER, LAYERS, LAYERS),
    (INNER, HIDDEN, LAYERS, LAYERS),
)
WEIGHTS = sum(d_in * d_out * count for d_in, d_out, count, _ in SHAPES)


@dataclass(frozen=True)
class Work:
    """Rows and queries, means of T, T^2 and T_q, and groups of batches; by default SST-2's."""

    rows: int = ROWS
    queries: int = QUERIES
    tokens: float = TOKENS
    squared: float = SQUARED
    query_tokens: float = QUERY_TOKENS
    groups: float = GROUPS


# Rows, queries (at most 2,000) and mean tokens of GLUE's tasks: counted for SST-2, assumed for the others.
TASKS = {
    "cola": (8_551, 1_043, 11), "sst2": (ROWS, QUERIES, TOKENS), "mrpc": (3_668, 408, 53),
    "qqp": (363_846, 2_000, 30), "stsb": (5_749, 1_500, 31), "mnli": (392_702, 2_000, 39),
    "qnli": (104_743, 2_000, 50), "rte": (2_432, 277, 70), "wnli": (635, 71, 37),
}  # fmt: skip


def passes(tokens: float, squared: float, rows: int = ROWS) -> float:
    """Multiply-adds of forward and backward for rows with this mean number of tokens, and of its square."""
    return rows * (2 * WEIGHTS * tokens + 6 * LAYERS * HIDDEN * squared)


def stock() -> dict[str, float]:
    """Multiply-adds of stock kronfluence's phases, padded."""
    every = ROWS * PADDED
    inputs = sum(d_in**2 * count for d_in, _, count, _ in SHAPES)
    outputs = sum(d_out**2 * count for _, d_out, count, _ in SHAPES)
    rotation = sum(d_in * d_out * (d_in + d_out) * count for d_in, d_out, count, _ in SHAPES)
    through = passes(PADDED, PADDED**2)
    return {
        "covariance": through + ROWS * TOKENS * inputs + every * outputs,
        "lambda": through + every * WEIGHTS + ROWS * rotation,
        "pairwise": -(-QUERIES // QUERY_BATCH) * (through + every * WEIGHTS) + ROWS * QUERIES * WEIGHTS,
    }


def ours(itemsize: int, work: Work | None = None) -> dict[str, dict[str, float]]:
    """Phase -> multiply-adds of "model" and rotations, in "float64", of per-example "gradients", and bytes "moved".

    itemsize: bytes of a number of a per-example gradient. work: SST-2's if none is given.
    """
    work = work or Work()
    real, through = work.rows * work.tokens, passes(work.tokens, work.squared, work.rows)
    squares = sum(part(d_in) * own + part(d_out) * count for d_in, d_out, count, own in SHAPES)
    rotation = real * sum(d_in**2 * own + d_out**2 * count for d_in, d_out, count, own in SHAPES)
    # Bytes of gradients formed.
    rows, queries = work.rows * WEIGHTS * itemsize, work.groups * work.queries * WEIGHTS * itemsize
    asked = work.groups * work.queries * work.query_tokens * WEIGHTS
    return {
        "covariance": {"model": through, "float64": real * squares},
        "lambda": {  # gradients are written, squared and summed
            "model": through + rotation, "gradients": real * WEIGHTS, "moved": 4 * rows,
        },
        "pairwise": {  # gradients of queries are also multiplied by the inverse curvature
            "model": through + rotation, "gradients": asked + real * WEIGHTS + work.rows * work.queries * WEIGHTS,
            "moved": 2 * rows + 4 * queries,
        },
    }  # fmt: skip


def part(width: int) -> float:
    """Multiply-adds a token of a covariance of this width: only blocks on and above the diagonal."""
    return (width**2 + width * GRAM_STEP) / 2


def estimate(card: dict[str, float] | None = None) -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of this project on a card with these rates (see `A100`, which is the default)."""
    card, counted, result = card or A100, stock(), {}
    faster = {kind: card[kind] / A100[kind] for kind in A100}
    for name, itemsize in (("float32", 4), ("tf32", 4), ("bfloat16", 2), ("bfloat16 and tf32", 2)):
        seconds = {"covariance": 0.0, "eigendecomposition": PUBLISHED["float32"]["eigendecomposition"]}
        for phase, work in ours(itemsize).items():
            rates = {precision: counted[phase] / PUBLISHED[precision][phase] for precision in PUBLISHED}
            rates["tf32"] = A100["tf32"] / A100["bfloat16"] * rates["bfloat16"]
            float64 = rates["float32"] * faster["float64"]
            rates = {precision: rate * faster[precision] for precision, rate in rates.items()}
            rates |= {"model": rates["tf32" if "tf32" in name else "float32"], "float64": float64}
            rates |= {"gradients": rates["bfloat16" if itemsize == 2 else name], "moved": card["bytes"]}
            seconds[phase] = sum(amount / rates[kind] for kind, amount in work.items())
        result[name] = seconds | {"all": sum(seconds.values())}
    return result


def task_table(memory: float = 80e9, budget: int = 128 * 128) -> dict[str, list]:
    """What each GLUE task takes in float32 on one A100 and on eight: bytes, passes and hours, by arithmetic.

    memory: bytes of a card. budget: tokens of a batch and of a waiting group.
    """
    squares = sum((d_in**2 + d_out**2) * count for d_in, d_out, count, _ in SHAPES)
    apart = sum(d_in**2 * own + d_out**2 * count for d_in, d_out, count, own in SHAPES)  # query, key, value share
    features = sum((d_in + d_out) * count for d_in, d_out, count, _ in SHAPES)
    factors = (8 + 4) * squares + 4 * WEIGHTS  # covariances in float64, eigenvectors and lambda in float32
    room = 0.9 * memory - 4 * (squares + WEIGHTS) - 16 * 2**27 - 8 * features * budget  # as influence/memory.py plans
    counted, rows = stock(), []
    for name, (count, queries, tokens) in TASKS.items():
        asked = QUERY_TOKENS if name == "sst2" else tokens
        squared = SQUARED if name == "sst2" else 1.3 * tokens**2
        work = Work(count, queries, tokens, squared, asked, max(1.0, 1.05 * count * tokens / budget))
        held = queries * asked * features * 4
        turns = math.ceil(held / room)
        seconds = {"eigendecomposition": PUBLISHED["float32"]["eigendecomposition"]}
        for phase, parts in ours(4, work).items():
            rate = counted[phase] / PUBLISHED["float32"][phase]
            again = (turns - 1) * parts["model"] if phase == "pairwise" else 0
            products = sum(amount for kind, amount in parts.items() if kind != "moved") + again
            seconds[phase] = products / rate + parts.get("moved", 0) / A100["bytes"]
        hours, scores = sum(seconds.values()) / 3600, 4 * count * queries
        reduced = 8 * (apart + WEIGHTS) + scores * 7 / 8
        sizes = [f"{size / 1e9:.1f} GB" for size in (factors, held, scores, reduced)]
        times = [str(turns), f"{hours:.2f}", f"{hours / 8:.2f}"]
        rows.append([name, f"{count:,} x {queries:,}", f"{tokens:.0f}", *sizes, *times])
    bytes_of = ["factors", "held queries", "scores", "reduced"]
    return {"header": ["task", "rows x queries", "tokens", *bytes_of, "passes", "hours", "hours on 8"], "rows": rows}


def card_rates(device: str = "cuda", size: int = 8192, repeats: int = 10) -> dict[str, float]:
    """What the card reaches: multiply-adds a second in products of (size, size), and bytes a second in copies."""
    rates, pairs = {}, (("float64", torch.float64), ("float32", torch.float32), ("tf32", torch.float32))
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


def random_start(folder: Path, dataset_path: str | None, tokenizer_of: str | None) -> dict[str, float]:
    """Saves BERT-base's shape with random weights and that model's tokenizer (the demo's); returns tokens of rows."""
    tokenizer = get_tokenizer(tokenizer_of or str(DEMO_MODEL), "sst2")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tables = load_tables("sst2", dataset_path)
    rows = [get_glue_dataset("sst2", split, tokenizer=tokenizer, tables=tables).lengths for split in ("train", "valid")]
    found = {"tokens of a row": float(rows[0].mean()), "tokens of a query": float(rows[1].mean())}
    print(", ".join(f"{value:.1f} {name}" for name, value in found.items()))
    return found


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of analyze.py on this GPU, "whole process", and "Spearman" with float32.

    Trains for one epoch first. What lies in --work_dir is not measured again.
    """
    work, start = args.work_dir.resolve(), args.model_name_or_path
    common = ["--dataset_name", "sst2", "--checkpoint_dir", str(work)]
    if not (work / "sst2/run.json").exists():
        if args.random_weights:
            write_json(work / "tokens.json", random_start(work / "random", args.dataset_path, start))
            start = str(work / "random")
        places = {"--dataset_path": args.dataset_path, "--model_name_or_path": start}
        given = [part for name, value in places.items() if value for part in (name, value)]
        train = [*common, *given, "--num_train_epochs", "1", "--max_train_samples", str(ROWS), "--seed", "1004"]
        subprocess.run([sys.executable, ROOT / "train.py", *train], check=True)
    for name in args.precisions:
        if not (work / f"{name}.json").exists():
            measure_one(work, name, common)
    result = {name: read_json(work / f"{name}.json") or {} for name in FLAGS if (work / f"{name}.json").exists()}
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


def main(argv=None) -> None:
    """Prints published and estimated seconds, and measured ones unless --estimate is given; stores what is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--estimate", action="store_true", help="write and print the estimate for an A100; measure nothing")
    add("--dataset_path", help="folder or hub id with sst2 (nyu-mll/glue)")
    add("--model_name_or_path", help="folder or hub id of a BERT-base (bert-base-cased)")
    add("--random_weights", action="store_true", help="BERT-base's shape, random, with the tokenizer of that model")
    add("--precisions", nargs="+", choices=tuple(FLAGS), default=list(FLAGS), help="what is measured (all)")
    add("--work_dir", type=Path, default=Path("checkpoints/gpu"), help="single measurements (checkpoints/gpu)")
    add("--results_dir", type=Path, default=Path("results"), help="the JSON goes here (results)")
    add("--tasks", action="store_true", help="write and print what GLUE's tasks take, by arithmetic")
    args = parser.parse_args(argv)
    check_clean(args.results_dir)
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
    measured, card, name = measure(args), card_rates(), torch.cuda.get_device_name()  # rates last: they keep memory
    print(f"{name}: " + ", ".join(f"{kind} {rate:.3g}/s" for kind, rate in card.items()))
    write_json(args.results_dir / "gpu.json", measured)
    write_json(args.results_dir / "gpu_card.json", origin("cuda") | {"rates": card, "estimate": estimate(card)})
    print(gpu_table(PUBLISHED, estimate(card), measured).replace("estimate for an A100", f"estimate for {name}"))


if __name__ == "__main__":
    sys.exit(run_script(main))

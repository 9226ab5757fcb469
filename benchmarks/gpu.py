"""SST-2 with BERT-base on one GPU: what this project takes, beside what was published for stock kronfluence.

    python benchmarks/gpu.py --estimate          # by arithmetic, for an A100; needs no GPU; results/gpu_estimate.json
    python benchmarks/gpu.py                     # measures float32, TF32 and bfloat16 on this GPU; results/gpu.json

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
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.numpy import load_file  # noqa: E402

from attribution.evidence.stats import mean_spearman  # noqa: E402
from attribution.files import run_script, write_json  # noqa: E402
from attribution.influence.contractions import GRAM_STEP  # noqa: E402
from attribution.show.pages import read_result  # noqa: E402
from attribution.show.timings import gpu_table  # noqa: E402

PUBLISHED = read_result(ROOT / "results", "published")["gpu_seconds"]["seconds"]  # precision -> phase -> seconds
ROWS, QUERIES, LAYERS, HIDDEN, INNER, PADDED = 67_349, 872, 12, 768, 3072, 128
QUERY_BATCH = 175  # of the published command
# Mean of T and of T^2 over the training rows of SST-2 and mean of T_q, in BERT's word pieces; groups of at most
# 128 x 128 tokens.
TOKENS, SQUARED, QUERY_TOKENS, GROUPS = 13.32, 268.5, 25.16, 57
BANDWIDTH = 1.555e12  # bytes a second: an A100 of 40 GB; that of 80 GB is faster
PEAK_TF32_OVER_BFLOAT16 = 0.5  # tensor cores' peak rates: 156 and 312 TFLOP/s
# (D_in, D_out, how many modules, how many of them read an input of their own)
SHAPES = (
    (HIDDEN, HIDDEN, 4 * LAYERS + 1, 2 * LAYERS + 1),
    (HIDDEN, INNER, LAYERS, LAYERS),
    (INNER, HIDDEN, LAYERS, LAYERS),
)
WEIGHTS = sum(d_in * d_out * count for d_in, d_out, count, _ in SHAPES)


def passes(tokens: float, squared: float) -> float:
    """Multiply-adds of forward and backward for rows with this mean number of tokens, and of its square."""
    return ROWS * (2 * WEIGHTS * tokens + 6 * LAYERS * HIDDEN * squared)


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


def ours(itemsize: int) -> dict[str, dict[str, float]]:
    """Phase -> multiply-adds of "model" and rotations, in "float64", of per-example "gradients", and bytes "moved".

    itemsize: bytes of a number of a per-example gradient.
    """
    real, through = ROWS * TOKENS, passes(TOKENS, SQUARED)
    squares = sum(part(d_in) * own + part(d_out) * count for d_in, d_out, count, own in SHAPES)
    rotation = real * sum(d_in**2 * own + d_out**2 * count for d_in, d_out, count, own in SHAPES)
    rows, queries = ROWS * WEIGHTS * itemsize, GROUPS * QUERIES * WEIGHTS * itemsize  # bytes of gradients formed
    asked = GROUPS * QUERIES * QUERY_TOKENS * WEIGHTS
    return {
        "covariance": {"model": through, "float64": real * squares},
        "lambda": {  # gradients are written, squared and summed
            "model": through + rotation, "gradients": real * WEIGHTS, "moved": 4 * rows,
        },
        "pairwise": {  # gradients of queries are also multiplied by the inverse curvature
            "model": through + rotation, "gradients": asked + real * WEIGHTS + ROWS * QUERIES * WEIGHTS,
            "moved": 2 * rows + 4 * queries,
        },
    }  # fmt: skip


def part(width: int) -> float:
    """Multiply-adds a token of a covariance of this width: only blocks on and above the diagonal."""
    return (width**2 + width * GRAM_STEP) / 2


def estimate() -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of this project on an A100."""
    counted, result = stock(), {}
    for name, itemsize in (("float32", 4), ("tf32", 4), ("bfloat16", 2), ("bfloat16 and tf32", 2)):
        seconds = {"covariance": 0.0, "eigendecomposition": PUBLISHED["float32"]["eigendecomposition"]}
        for phase, work in ours(itemsize).items():
            rates = {precision: counted[phase] / PUBLISHED[precision][phase] for precision in PUBLISHED}
            rates["tf32"] = PEAK_TF32_OVER_BFLOAT16 * rates["bfloat16"]
            rates |= {"model": rates["tf32" if "tf32" in name else "float32"], "float64": rates["float32"]}
            rates |= {"gradients": rates["bfloat16" if itemsize == 2 else name], "moved": BANDWIDTH}
            seconds[phase] = sum(amount / rates[kind] for kind, amount in work.items())
        result[name] = seconds | {"all": sum(seconds.values())}
    return result


def measure(dataset_path: str | None, model_name_or_path: str | None) -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of analyze.py on this GPU, and "Spearman" with float32.

    Trains for one epoch first. dataset_path, model_name_or_path: as train.py takes them; None for the hub's.
    """
    flags = {"float32": [], "tf32": ["--tf32"], "bfloat16": ["--use_half_precision"]}
    flags["bfloat16 and tf32"] = [*flags["bfloat16"], *flags["tf32"]]
    places = {"--dataset_path": dataset_path, "--model_name_or_path": model_name_or_path}
    given = [part for name, value in places.items() if value for part in (name, value)]
    result, reference = {}, None
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset_name", "sst2", "--checkpoint_dir", folder]
        train = [*common, *given, "--num_train_epochs", "1", "--max_train_samples", str(ROWS), "--seed", "1004"]
        subprocess.run([sys.executable, ROOT / "train.py", *train], check=True)
        for name in flags:
            sizes = ["--query_batch_size", str(QUERY_BATCH), "--train_batch_size", "128", "--overwrite"]
            subprocess.run([sys.executable, ROOT / "analyze.py", *common, *sizes, *flags[name]], check=True)
            scores = Path(folder) / "sst2/influence/scores" / ("ekfac_half" if "bfloat16" in name else "ekfac")
            values = load_file(scores / "pairwise_scores.safetensors")["all_modules"]
            reference = values if reference is None else reference
            result[name] = json.loads((scores / "pairwise_scores.json").read_text())["seconds"]
            result[name]["Spearman"] = mean_spearman(values, reference)
    return result


def main(argv=None) -> None:
    """Prints published and estimated seconds, and measured ones unless --estimate is given; stores what is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--estimate", action="store_true", help="write and print the estimate for an A100; measure nothing")
    add("--dataset_path", help="folder or hub id with sst2 (nyu-mll/glue)")
    add("--model_name_or_path", help="folder or hub id of a BERT-base (bert-base-cased)")
    add("--results_dir", type=Path, default=Path("results"), help="gpu.json or gpu_estimate.json goes here (results)")
    args = parser.parse_args(argv)
    estimated, measured = estimate(), None
    if args.estimate:
        write_json(args.results_dir / "gpu_estimate.json", estimated)
    else:
        measured = measure(args.dataset_path, args.model_name_or_path)
        write_json(args.results_dir / "gpu.json", measured)
    print(gpu_table(PUBLISHED, estimated, measured))


if __name__ == "__main__":
    sys.exit(run_script(main))

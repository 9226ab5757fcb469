"""Seconds of SST-2 with BERT-base, from the multiply-adds and bytes of stock kronfluence and ours.

`lab.gpu` prints what this file counts. The published seconds are in results/published.json, with
their source: 67,349 rows, 872 queries, padded to 128 tokens, one A100. Stock's count of a phase,
divided by its published seconds, is the rate that stock reached in that phase. Ours is assumed to
reach the same rate. The time in which the memory moves the per-example gradients that ours writes
and reads is added. With bfloat16 only the products of per-example gradients run in bfloat16; the
rest runs in float32, or in TF32 where both are given. Covariances are summed in float64, whose
tensor cores have the peak rate of float32 on an A100.

Symbols: N rows, Q queries, T tokens of a row, T_q of a query, P weights of the linear layers, L
layers, D hidden size.

- A pass over a token: 2 P for forward and backward (inputs' gradients only), 6 L T D for attention.
- Covariance: the sum of D_in^2 (real tokens) and of D_out^2 (all tokens). Ours: real tokens, one
  D_in^2 for query, key and value, of a matrix only blocks on and above the diagonal.
- Lambda: P a token for gradients. Stock: D_in D_out (D_in + D_out) a row for their rotation. Ours:
  D_in^2 + D_out^2 a token, D_in^2 once for query, key and value.
- Pairwise: P a token and pass, Q P a row. Stock: a pass for every 175 queries, its published batch.
  Ours: one pass, because it holds the queries' tokens (15 GB in float32), lambda's rotation, and
  Q T_q P for query gradients, again for every group of batches.
"""

import math
from dataclasses import dataclass

from attribution.engine.contractions import GRAM_STEP
from attribution.engine.memory import GROUP_ROWS
from lab.common import RESULTS, read_result

PUBLISHED = read_result(RESULTS, "published")["gpu_seconds"][
    "seconds"
]  # precision -> phase -> seconds
ROWS, QUERIES, LAYERS, HIDDEN, INNER, PADDED = 67_349, 872, 12, 768, 3072, 128
QUERY_BATCH = 175  # of the published command
TOKENS, SQUARED, QUERY_TOKENS = (
    13.32,
    268.5,
    25.16,
)  # of SST-2: means of T, T^2 and T_q, in BERT's word pieces
BUDGET = 128 * 128  # tokens of a batch
MEMORY = 80e9  # bytes of an A100
# Of an A100 of 40 GB (that of 80 GB moves more): peak multiply-adds a second, of which a FLOP is
# half, and bytes.
A100 = {
    "float64": 9.75e12,
    "float32": 9.75e12,
    "tf32": 78e12,
    "bfloat16": 156e12,
    "bytes": 1.555e12,
}
# (D_in, D_out, how many modules, how many of them read an input of their own)
SHAPES = (
    (HIDDEN, HIDDEN, 4 * LAYERS + 1, 2 * LAYERS + 1),
    (HIDDEN, INNER, LAYERS, LAYERS),
    (INNER, HIDDEN, LAYERS, LAYERS),
)
WEIGHTS = sum(d_in * d_out * count for d_in, d_out, count, _ in SHAPES)
FEATURES = sum((d_in + d_out) * count for d_in, d_out, count, _ in SHAPES)


@dataclass(frozen=True)
class Work:
    """Rows and queries, means of T, T^2 and T_q, and bytes of the card; by default SST-2's, on an
    A100.
    """

    rows: int = ROWS
    queries: int = QUERIES
    tokens: float = TOKENS
    squared: float = SQUARED
    query_tokens: float = QUERY_TOKENS
    memory: float = MEMORY

    @property
    def held(self) -> float:
        """Bytes of all queries' tokens, in float32."""
        return 4 * self.queries * self.query_tokens * FEATURES

    @property
    def room(self) -> float:
        """Bytes that bases, blocks, a batch and a group of as many tokens leave, as
        engine/memory.py plans.
        """
        squares = sum((d_in**2 + d_out**2) * count for d_in, d_out, count, _ in SHAPES)
        return 0.9 * self.memory - 4 * (squares + WEIGHTS) - 16 * 2**27 - 8 * FEATURES * BUDGET

    @property
    def groups(self) -> float:
        """Groups of batches that meet the queries; of GROUP_ROWS rows, or what half of the room
        that is left holds.
        """
        more = max(0.0, self.room - min(self.held, self.room)) / 2 / (4 * FEATURES)
        group = max(BUDGET, min(GROUP_ROWS["cuda"] * self.tokens, BUDGET + more))
        return max(1.0, 1.05 * self.rows * self.tokens / group)


# Rows, queries (at most 2,000) and mean tokens of GLUE's tasks: counted for SST-2, assumed for the
# others.
TASKS = {
    "cola": (8_551, 1_043, 11),
    "sst2": (ROWS, QUERIES, TOKENS),
    "mrpc": (3_668, 408, 53),
    "qqp": (363_846, 2_000, 30),
    "stsb": (5_749, 1_500, 31),
    "mnli": (392_702, 2_000, 39),
    "qnli": (104_743, 2_000, 50),
    "rte": (2_432, 277, 70),
    "wnli": (635, 71, 37),
}


def passes(tokens: float, squared: float, rows: int = ROWS) -> float:
    """Multiply-adds of forward and backward for rows with this mean number of tokens, and of its
    square.
    """
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
        "pairwise": -(-QUERIES // QUERY_BATCH) * (through + every * WEIGHTS)
        + ROWS * QUERIES * WEIGHTS,
    }


def ours(itemsize: int, work: Work | None = None) -> dict[str, dict[str, float]]:
    """Phase -> multiply-adds of "model" and rotations, in "float64", of per-example "gradients",
    and bytes "moved".

    itemsize: bytes of a number of a per-example gradient. work: SST-2's if none is given.
    """
    work = work or Work()
    real = work.rows * work.tokens
    through = passes(work.tokens, work.squared, work.rows)
    squares = sum(part(d_in) * own + part(d_out) * count for d_in, d_out, count, own in SHAPES)
    rotation = real * sum(d_in**2 * own + d_out**2 * count for d_in, d_out, count, own in SHAPES)
    # Bytes of gradients formed.
    rows = work.rows * WEIGHTS * itemsize
    queries = work.groups * work.queries * WEIGHTS * itemsize
    query_gradients = work.groups * work.queries * work.query_tokens * WEIGHTS
    return {
        "covariance": {"model": through, "float64": real * squares},
        "lambda": {  # gradients are written, squared and summed
            "model": through + rotation,
            "gradients": real * WEIGHTS,
            "moved": 4 * rows,
        },
        "pairwise": {  # gradients of queries are also multiplied by the inverse curvature
            "model": through + rotation,
            "gradients": query_gradients + real * WEIGHTS + work.rows * work.queries * WEIGHTS,
            "moved": 2 * rows + 4 * queries,
        },
    }


def part(width: int) -> float:
    """Multiply-adds a token of a covariance of this width: blocks on and above the diagonal."""
    return (width**2 + width * GRAM_STEP) / 2


def estimate(
    card: dict[str, float] | None = None, work: Work | None = None
) -> dict[str, dict[str, float]]:
    """Precision -> phase -> seconds of this project on a card with these rates (see `A100`, which
    is the default).

    work: all of SST-2 if none is given.
    """
    card = card or A100
    counted = stock()
    result = {}
    faster = {kind: card[kind] / A100[kind] for kind in A100}
    for name, itemsize in (("float32", 4), ("tf32", 4), ("bfloat16", 2), ("bfloat16 and tf32", 2)):
        seconds = {
            "covariance": 0.0,
            "eigendecomposition": PUBLISHED["float32"]["eigendecomposition"],
        }
        for phase, parts in ours(itemsize, work).items():
            rates = {
                precision: counted[phase] / PUBLISHED[precision][phase] for precision in PUBLISHED
            }
            rates["tf32"] = A100["tf32"] / A100["bfloat16"] * rates["bfloat16"]
            float64 = rates["float32"] * faster["float64"]
            rates = {precision: rate * faster[precision] for precision, rate in rates.items()}
            rates |= {"model": rates["tf32" if "tf32" in name else "float32"], "float64": float64}
            rates |= {
                "gradients": rates["bfloat16" if itemsize == 2 else name],
                "moved": card["bytes"],
            }
            seconds[phase] = sum(amount / rates[kind] for kind, amount in parts.items())
        result[name] = seconds | {"all": sum(seconds.values())}
    return result


def task_table() -> dict[str, list]:
    """Bytes, passes and hours of each GLUE task in float32 on one A100 and on eight."""
    squares = sum((d_in**2 + d_out**2) * count for d_in, d_out, count, _ in SHAPES)
    # Query, key and value share the covariance of their input.
    apart = sum(d_in**2 * own + d_out**2 * count for d_in, d_out, count, own in SHAPES)
    # Covariances in float64, eigenvectors and lambda in float32.
    factors = (8 + 4) * squares + 4 * WEIGHTS
    counted = stock()
    rows = []
    for name, (count, queries, tokens) in TASKS.items():
        query_tokens = QUERY_TOKENS if name == "sst2" else tokens
        squared = SQUARED if name == "sst2" else 1.3 * tokens**2
        work = Work(count, queries, tokens, squared, query_tokens)
        turns = math.ceil(work.held / work.room)
        seconds = {"eigendecomposition": PUBLISHED["float32"]["eigendecomposition"]}
        for phase, parts in ours(4, work).items():
            rate = counted[phase] / PUBLISHED["float32"][phase]
            again = (turns - 1) * parts["model"] if phase == "pairwise" else 0
            products = sum(amount for kind, amount in parts.items() if kind != "moved") + again
            seconds[phase] = products / rate + parts.get("moved", 0) / A100["bytes"]
        hours = sum(seconds.values()) / 3600
        scores = 4 * count * queries
        reduced = 8 * (apart + WEIGHTS) + scores * 7 / 8
        sizes = [f"{size / 1e9:.1f} GB" for size in (factors, work.held, scores, reduced)]
        times = [str(turns), f"{hours:.2f}", f"{hours / 8:.2f}"]
        rows.append([name, f"{count:,} x {queries:,}", f"{tokens:.0f}", *sizes, *times])
    bytes_of = ["factors", "held queries", "scores", "reduced"]
    return {
        "header": ["task", "rows x queries", "tokens", *bytes_of, "passes", "hours", "hours on 8"],
        "rows": rows,
    }

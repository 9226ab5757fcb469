"""Measurements inside one process, for lab.speed: training speed, matrix products, operators.

    python -m lab.inner products --dataset_name sst2 --checkpoint_dir DIR --output products.json

`training`: rows a second in the second of two epochs. `products`: every matrix product of the
pairwise phase, counted in multiply-adds and then timed alone. `profile`: the operators of a whole
analysis that take the most time.
"""

import argparse
import collections
import functools
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import attribution.training.fit as fit_module
from attribution.cli import run_script
from attribution.files import check_file, write_json
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.training.run import Run
from pipeline import construct_bert, quiet_libraries

PRODUCTS = {
    "mm": 0,
    "addmm": 1,
    "addmm_": 1,
    "bmm": 0,
    "baddbmm": 1,
}  # operator -> place of its first factor
ATTENTION = {  # operator -> products of the size of Q K^T
    "_scaled_dot_product_flash_attention_for_cpu": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 5,
}
REPEATS = 3  # a product is timed so often; the fastest counts


class ProductLog(TorchDispatchMode):
    """Counts every matrix product: two factors, each with shape, strides and type."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            first = PRODUCTS[name]
            self.counts[tuple(self._layout(x) for x in args[first : first + 2])] += 1
        elif name in ATTENTION:
            query = (
                args[1] if name.endswith("backward") else args[0]
            )  # backward: grad_out comes first
            batch, heads, tokens, width = query.shape
            left, right = (batch * heads, tokens, width), (batch * heads, width, tokens)
            layouts = tuple(
                (shape, (shape[1] * shape[2], shape[2], 1), query.dtype) for shape in (left, right)
            )
            self.counts[layouts] += ATTENTION[name]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _layout(x: torch.Tensor) -> tuple:
        return tuple(x.shape), tuple(x.stride()), x.dtype


def multiply_adds(left: tuple, right: tuple) -> int:
    """Of a product of these layouts: every entry of the left factor meets a row of the right."""
    return math.prod(left[0]) * right[0][-1]


def seconds_alone(left: tuple, right: tuple) -> float:
    """The fastest of a few runs of this product and nothing else, into memory that is there
    already.
    """
    factors = []
    for shape, stride, dtype in (left, right):
        length = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        factors.append(torch.randn(length).to(dtype).as_strided(shape, stride))
    product = torch.mm if factors[0].dim() == 2 else torch.bmm
    best, out = math.inf, product(*factors)
    for _ in range(REPEATS):
        start = time.perf_counter()
        product(*factors, out=out)
        best = min(best, time.perf_counter() - start)
    return best


def open_influence(args, folder: str) -> Influence:
    """The analysis of a copy of the run in `folder`, with nothing stored."""
    source = args.checkpoint_dir / args.dataset_name
    target = Path(folder) / args.dataset_name
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).symlink_to(path.resolve())
    run = Run.open(Path(folder), args.dataset_name)
    return Influence(run, *run.rows(args.max_queries), Settings())


def measure_products(args) -> dict:
    """Multiply-adds of the pairwise phase, and the seconds that its products take one after the
    other alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        influence = open_influence(args, folder)
        threads = torch.get_num_threads()
        influence.analyses[0].fit_factors()
        torch.set_num_threads(1)  # other threads are not seen by the log
        with ProductLog() as log:
            influence.compute("pairwise")
        torch.set_num_threads(threads)
    total = sum(multiply_adds(*layouts) * count for layouts, count in log.counts.items())
    alone = sum(seconds_alone(*layouts) * count for layouts, count in log.counts.items())
    counts = {"products": sum(log.counts.values()), "shapes": len(log.counts)}
    return {"multiply_adds": total, "seconds_alone": alone, **counts}


def measure_profile(args) -> dict:
    """Operators of a whole analysis by their own time on the CPU, in shares of all; in one thread,
    to see them all.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        influence = open_influence(args, folder)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            influence.compute("pairwise")
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    operators = [
        {"name": event.key, "share": event.self_cpu_time_total / total, "calls": event.count}
        for event in events[:20]
    ]
    return {"seconds": total / 1e6, "operators": operators}


def measure_training(args) -> dict:
    """Rows a second of the second epoch."""
    run = Run.open(args.checkpoint_dir, args.dataset_name)
    assert run.recipe is not None
    dataset, _ = run.rows(1)
    model = construct_bert(args.dataset_name, str(run.folder), seed=0)
    seconds = []
    if args.pad_to:
        # Whole batches of one width, as a plain training loop feeds them.
        dataset.batch = functools.partial(dataset.batch, pad_to=args.pad_to)
        fit_module.piece_overhead = lambda *_: float("inf")
    fit_module.fit(
        model,
        dataset,
        np.arange(len(dataset)),
        seed=0,
        on_epoch=lambda epoch, loss, took: seconds.append(took),
        **run.recipe | {"num_train_epochs": 2},
    )
    return {"rows_per_second": len(dataset) / seconds[-1]}


def main(argv=None) -> None:
    """Writes one measurement as JSON."""
    quiet_libraries()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measurements = {
        "training": measure_training,
        "products": measure_products,
        "profile": measure_profile,
    }
    parser.add_argument("what", choices=tuple(measurements))
    parser.add_argument("--dataset_name", required=True, help="the task of the checkpoint")
    parser.add_argument(
        "--checkpoint_dir",
        type=Path,
        required=True,
        help="where the run is; nothing is written there",
    )
    parser.add_argument(
        "--max_queries", type=int, default=64, help="the first so many validation rows (64)"
    )
    parser.add_argument(
        "--pad_to", type=int, default=0, help="training: tokens to pad to (0: to the longest row)"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    args = parser.parse_args(argv)
    check_file(args.output, "--output")
    write_json(args.output, measurements[args.what](args))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Error of the noise ceiling for few repeats: simulated studies whose true ceiling is known.

    python -m lab.ceiling                 # writes RESULTS_DIR/ceiling.json; takes a minute

A query's margins are a signal over masks plus noise for each repeat, both normal. Its reliability,
the share of the signal in the variance of one repeat, is the same for all queries, or differs
between them. The truth is the LDS that the signal itself reaches against the mean of R repeats.
Symbols: M masks, R repeats, Q queries.
"""

import argparse
import sys

import numpy as np

from attribution.cli import check_numbers, run_script
from attribution.evidence import stats
from attribution.files import check_file, write_json
from attribution.provenance import origin
from lab.common import add_results_argument, noise_ceiling

QUERIES = {  # name -> reliability of one repeat, from the first query to the last
    "alike, reliable": (0.6, 0.6),
    "alike, noisy": (0.1, 0.1),
    "nothing but noise": (0.0, 0.0),
    "from noisy to reliable": (0.02, 0.9),
}
REPEATS = (2, 3, 5)


def simulate(
    reliability: np.ndarray, masks: int, repeats: int, generator
) -> tuple[float, float, float]:
    """(what a perfect score reaches, the ceiling, the root of the mean reliability) of one
    simulated study.

    reliability (Q,). The ceiling is the mean of the roots of the reliabilities; the last is a
    simpler formula.
    """
    signal = generator.standard_normal((masks, 1, len(reliability))) * np.sqrt(reliability)
    noise = generator.standard_normal((masks, repeats, len(reliability))) * np.sqrt(1 - reliability)
    margins = signal + noise
    truth = stats.make_truth(stats.mean_margins(margins))
    reached = stats.make_truth(signal[:, 0])
    return (
        float((reached.ranks * truth.ranks).sum(0).mean()),
        noise_ceiling(margins),
        root_of_mean(margins),
    )


def root_of_mean(margins: np.ndarray) -> float:
    """The root of the reliability of the mean whose pairwise correlation is averaged over queries
    first.
    """
    repeats = margins.shape[1]
    ranks = [stats.make_truth(margins[:, r]).ranks for r in range(repeats)]
    pairs = [(ranks[i] * ranks[j]).sum(0).mean() for i in range(repeats) for j in range(i)]
    r = max(0.0, float(np.mean(pairs)))
    return float(np.sqrt(repeats * r / (1 + (repeats - 1) * r)))


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--num_masks", type=int, default=100, help="masks of a study (100)")
    add("--num_queries", type=int, default=100, help="queries of a study (100)")
    add("--num_studies", type=int, default=200, help="simulated studies a row (200)")
    add_results_argument(add, "ceiling.json")
    args = parser.parse_args(argv)
    check_numbers(vars(args), "num_masks", "num_queries", "num_studies")
    return args


def main(argv=None) -> None:
    """Simulates, writes and prints the mean of each number over the studies."""
    args = parse_args(argv)
    check_file(args.results_dir / "ceiling.json", "--results_dir")
    rows = []
    for name, (low, high) in QUERIES.items():
        for repeats in REPEATS:
            generator, reliability = (
                np.random.default_rng(0),
                np.linspace(low, high, args.num_queries),
            )
            found = [
                simulate(reliability, args.num_masks, repeats, generator)
                for _ in range(args.num_studies)
            ]
            reached, new, simple = np.mean(found, axis=0)
            rows.append(
                {
                    "queries": name,
                    "repeats": repeats,
                    "reached": reached,
                    "ceiling": new,
                    "root of the mean": simple,
                }
            )
            print(
                f"{name}, {repeats} repeats: reached {reached:.3f}, ceiling {new:.3f}, root of the "
                f"mean {simple:.3f}"
            )
    sizes = {"masks": args.num_masks, "queries": args.num_queries, "studies": args.num_studies}
    write_json(args.results_dir / "ceiling.json", {"rows": rows} | sizes | origin())


if __name__ == "__main__":
    sys.exit(run_script(main))

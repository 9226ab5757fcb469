"""Which checkpoints should be scored together? Compares members that differ in seed, step or rows,
on tuning masks.

    python -m lab.members --dataset_name demo --first_query 50 --plan    # the commands before it
    python -m lab.members --dataset_name demo --first_query 50 --scores ekfac identity

Nothing is trained or scored here. Ground truth are the retrains of evaluate_lds.py with the same
arguments of masks; they are chosen so that no result uses them: masks of seed 1, retrain seeds from
200, other queries (--first_query). Sets of members with as many checkpoints are compared. Three
means are compared: the one that the scripts take, after each checkpoint was divided by its mean
self-influence (one number a checkpoint), the plain one, and the one in which a checkpoint counts as
much as the learning rate of the steps before it (TracIn, arXiv:2002.08484, equation 1). Of each
score the sets that are complete are compared, all of them with the run alone under the first score,
and with the same members under the first score. Writes RESULTS_DIR/members_DATASET_NAME.json and
.md.
"""

import argparse
import functools
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.cli import Parser, flags_of, run_script
from attribution.evidence import stats
from attribution.evidence.arguments import add_start_argument
from attribution.evidence.ground_truth import Subsets, own_truth
from attribution.evidence.study import check_recipe_known, open_study
from attribution.files import Refused, read_json
from attribution.influence.settings import STRATEGIES, ScoreSpec
from attribution.influence.stored import read_scores, scores_named, why_stale
from attribution.show import results
from attribution.show.tables import markdown, with_interval
from attribution.training.arguments import add_data_arguments, add_query_arguments
from attribution.training.members import Members
from attribution.training.run import Run
from lab.common import add_results_argument, add_tuning_arguments, from_query, noise_ceiling
from pipeline import quiet_libraries

SHARE = 0.5  # as retrains
SETS = {  # checkpoints -> members
    1: {"the run": Members(), "a half": Members(member_share=SHARE)},
    2: {
        "seeds": Members(2),
        "steps": Members(1, 2),
        "halves": Members(2, member_share=SHARE),
        "a half's steps": Members(1, 2, SHARE),
    },
    4: {
        "seeds": Members(4),
        "steps": Members(1, 4),
        "halves": Members(4, member_share=SHARE),
        "2 seeds x 2 steps": Members(2, 2),
        "2 halves x 2 steps": Members(2, 2, SHARE),
    },
    8: {
        "seeds": Members(8),
        "steps": Members(1, 8),
        "halves": Members(8, member_share=SHARE),
        "2 seeds x 4 steps": Members(2, 4),
        "4 seeds x 2 steps": Members(4, 2),
        "2 halves x 4 steps": Members(2, 4, SHARE),
        "4 halves x 2 steps": Members(4, 2, SHARE),
    },
}
# Scores that --plan knows, by name; those of identity are at the defaults, which come last.
SPECS = {
    spec.name: spec
    for damping, fisher, strategy in itertools.product(
        (None, 1e-2, 1e-3, 1e-4, 1e-5, 1e-8), ("exact", "sampled", None), STRATEGIES
    )
    for spec in [ScoreSpec(factor_strategy=strategy, fisher=fisher, damping_factor=damping)]
}
MEANS = ("scaled", "plain", "by learning rate")


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    group = add_data_arguments(parser)
    add_query_arguments(group)
    add_start_argument(group)
    add = parser.add_argument_group("tuning").add_argument
    add(
        "--scores",
        nargs="+",
        default=["ekfac"],
        help="names of the scores of each checkpoint (ekfac)",
    )
    add_tuning_arguments(add)
    add(
        "--plan",
        action="store_true",
        help="print the commands that make checkpoints, scores and retrains, then stop",
    )
    add_results_argument(add, "members_DATASET_NAME.json and .md")
    return parser.parse_args(argv)


def every_set() -> list[tuple[int, str, Members]]:
    """(checkpoints, what they are, members) of every set."""
    return [
        (count, label, members) for count, sets in SETS.items() for label, members in sets.items()
    ]


def score_flags(name: str) -> str:
    """Arguments of analyze.py for scores of this name. Raises Refused for a name not in SPECS."""
    if name not in SPECS:
        raise Refused(f"--plan knows no scores {name}; it knows {', '.join(SPECS)}")
    return SPECS[name].flags


def plan(args) -> str:
    """The commands; arguments of the run's training are left to whoever starts them."""
    where = f"--dataset_name {args.dataset_name} --checkpoint_dir {args.checkpoint_dir}"
    window = f"--first_query {args.first_query} --max_queries {args.max_queries}"
    lines = [
        f"python train.py {where} {flags_of(members)} ..."
        for _, _, members in every_set()
        if not members.single
    ]
    for score in args.scores:
        command = f"python analyze.py {where} {window} {score_flags(score)}"
        lines += [f"{command} {flags_of(members)}".rstrip() for _, _, members in every_set()]
    truth = f"--num_masks {args.num_masks} --num_repeats {args.num_repeats}"
    seeds = f"--mask_seed {args.mask_seed} --retrain_seed {args.retrain_seed}"
    return "\n".join([*lines, f"python evaluate_lds.py {where} {window} {truth} {seeds}"])


def rate_before(run: Run, schedule: str, every: int) -> float:
    """Mean learning rate, as a share of the first, of the `every` steps before this checkpoint."""
    last = run.steps if run.step is None else run.step
    steps = np.arange(max(0, last - every), last)
    return float((1 - steps / run.steps).mean()) if schedule == "linear" else 1.0


def weights_of(name: str, divisors: list[float], rates: list[float]) -> list[float]:
    """How much each member counts in the mean of this name."""
    if name == "scaled":
        return [1 / divisor for divisor in divisors]
    return rates if name == "by learning rate" else [1.0] * len(divisors)


@dataclass(frozen=True)
class Scored:
    """The scores of a set of checkpoints."""

    score: str
    count: int
    label: str
    each: list[np.ndarray]  # (Q, N) of each checkpoint
    divisors: list[float]  # mean self-influence of each
    rates: list[float]  # learning rate of the steps before each


def open_sets(args, run: Run, queries) -> list[Scored]:
    """The complete sets of every score, the run alone under the first score in front; each
    checkpoint is read once.

    Raises Refused where that one is missing; prints which other sets are.
    """

    @functools.cache
    def opened(score: str, place: Path) -> tuple[np.ndarray, float | None, Run] | None:
        member = Run.read(place)
        if member is None:
            return None
        name = from_query(score, args.first_query)
        found = scores_named(member, name, queries.fingerprint())
        if found is None:
            return None
        record = read_json(place / f"influence/scores/{name}/pairwise_scores.json") or {}
        spec = ScoreSpec(**record["spec"])
        # A mean over members divides scores by the mean self-influence of their checkpoint.
        own = place / f"influence/scores/{spec.of_self.name}/self_scores.json"
        divisor = None if why_stale(own, member) else float(read_scores(own).mean(dtype=np.float64))
        return found, divisor, member

    assert run.recipe is not None
    schedule = run.recipe["lr_schedule"]

    sets: list[Scored] = []
    for score in args.scores:
        lacking = []
        for count, label, members in every_set():
            found = [opened(score, place) for place in members.places(run)]
            each = [one for one in found if one is not None]
            divisors = [1.0] if count == 1 else [one for _, one, _ in each if one is not None]
            if len(each) == len(divisors) == count:
                rates = [
                    rate_before(member, schedule, member.steps // members.member_steps)
                    for *_, member in each
                ]
                values = [scores for scores, *_ in each]
                sets.append(Scored(score, count, label, values, divisors, rates))
            elif not sets:
                raise Refused(
                    f"{run.folder} has no scores {score} of these queries; --plan prints the "
                    "commands that make them"
                )
            else:
                lacking.append(f"{label} ({count})")
        if lacking:
            print(
                f"{score}: not all are scored of {', '.join(lacking)}; --plan prints the "
                "commands that make them"
            )
    return sets


def compare(args, run: Run, train, queries, truth) -> dict:
    """LDS of every set and mean, paired with one checkpoint, the run; and each member's standard
    deviation.
    """
    labels = train.labels
    controls = (
        truth.masks @ labels[:, None]
        if train.task.regression
        else stats.kept_counts(truth.masks, labels)
    )
    draws = stats.draw(len(truth.masks), truth.margins.shape[2])
    means = stats.mean_margins(truth.margins)
    rows: list[dict] = []
    sets = open_sets(args, run, queries)
    for kind, columns in (("plain", None), ("balanced", controls)):
        ranks = stats.make_truth(means, columns)
        # LDS and draws of the run alone, and of each set under the first score.
        alone = None
        first_score: dict[tuple, tuple] = {}
        for one in sets:
            singles = [stats.agreement(scores, truth.masks, ranks).mean for scores in one.each]
            for name in MEANS if one.count > 1 else MEANS[:1]:
                weights = weights_of(name, one.divisors, one.rates)
                total = np.einsum("k,kqn->qn", weights, np.stack(one.each), dtype=np.float64)
                agreed = stats.agreement(total, truth.masks, ranks)
                sample = stats.bootstrap(agreed, ranks, draws)
                alone = (agreed.mean, sample) if alone is None else alone
                paired: dict = {}
                which = (one.count, one.label, name)
                if one.score == args.scores[0]:
                    first_score[which] = agreed.mean, sample
                elif which in first_score:  # else the first score lacks a checkpoint of this set
                    of_first, draws_of_first = first_score[which]
                    paired["against_first"] = agreed.mean - of_first
                    paired["against_first_interval"] = stats.interval(sample - draws_of_first)
                rows.append(
                    {
                        "kind": kind,
                        "score": one.score,
                        "checkpoints": one.count,
                        "members": one.label,
                        "mean": name,
                        "lds": agreed.mean,
                        "interval": stats.interval(sample),
                        "difference": agreed.mean - alone[0],
                        "difference_interval": stats.interval(sample - alone[1]),
                        "deviations": [float(np.std(scores)) for scores in one.each],
                        "singles": singles,
                        **paired,
                    }
                )
    ceiling = {
        "plain": noise_ceiling(truth.margins),
        "balanced": noise_ceiling(truth.margins, controls),
    }
    sizes = {"masks": len(truth.masks), "repeats": truth.margins.shape[1], "queries": len(queries)}
    return {"rows": rows, "ceiling": ceiling, "first_query": args.first_query} | sizes


def members_markdown(result: dict) -> str:
    """One line a set of checkpoints: LDS of the mean that the scripts take, and of other means.

    What each set adds is against the first line, one checkpoint; another score also against the
    same members under the first score.
    """
    first, *others = dict.fromkeys(row["mean"] for row in result["rows"])
    keys = ("kind", "score", "checkpoints", "members", "mean")
    found = {tuple(row[key] for key in keys): row for row in result["rows"]}
    rows, more = [], any("against_first" in row for row in result["rows"])
    for kind, *which, mean in found:
        if (kind, mean) == ("plain", first):
            cells = list(map(str, which))
            for one in (found["plain", *which, mean], found["balanced", *which, mean]):
                cells.append(with_interval(one["lds"], one["interval"]))
                cells.append(with_interval(one["difference"], one["difference_interval"], "+.3f"))
            more_means = [found.get(("plain", *which, name)) for name in others]
            cells += ["-" if other is None else f"{other['lds']:.3f}" for other in more_means]
            entry = found["plain", *which, mean]
            if more:
                against = entry.get("against_first"), entry.get("against_first_interval")
                cells.append("-" if against[0] is None else with_interval(*against, "+.3f"))
            spread, singles = entry["deviations"], entry.get("singles", [])
            rows.append(
                [
                    *cells,
                    f"{min(spread):.2g} to {max(spread):.2g}",
                    ", ".join(f"{one:.2f}" for one in singles) or "-",
                ]
            )
    shown = {
        kind: "-" if value is None else f"{value:.3f}" for kind, value in result["ceiling"].items()
    }
    rows.append(
        [
            "noise ceiling",
            "-",
            "-",
            shown["plain"],
            "-",
            shown["balanced"],
            *["-"] * (len(others) + 3 + more),
        ]
    )
    header = [
        "score",
        "checkpoints",
        "members",
        "LDS [95 %]",
        "minus the first line",
        "class balance controlled",
    ]
    header += ["minus the first line", *(f"{name} mean" for name in others)]
    header += [f"minus the same members' {result['scores'][0]}"] * more
    header += ["standard deviation of the scores", "LDS of each alone"]
    note = (
        f"{result['dataset']}: {result['masks']} masks x {result['repeats']} repeats, "
        f"{result['queries']} queries from row {result['first_query']} on. Used for tuning only."
    )
    return markdown(header, rows) + "\n\n" + note


def main(argv=None) -> None:
    """Evaluates what is stored, and prints the table. Raises Refused where something is missing."""
    quiet_libraries()
    args = parse_args(argv)
    if args.plan:
        print(plan(args))
        return
    place = results.Place(args.results_dir / f"members_{args.dataset_name}")
    place.check()
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    check_recipe_known(run)
    rows = run.rows(args.max_queries, args.first_query)
    train, queries = rows
    where = {
        "model_name_or_path": args.model_name_or_path,
        "jobs_per_device": 1,
        "max_queries": args.max_queries,
    }
    study = open_study(run, rows, run.recipe, retrains=False, **where)
    subsets = Subsets(args.num_masks, args.num_repeats, 0.5, args.mask_seed, args.retrain_seed)
    truth = own_truth(study, subsets, dry_run=False)
    result = compare(args, run, train, queries, truth) | {
        "scores": args.scores,
        "dataset": args.dataset_name,
    }
    print(members_markdown(result))
    origin = {
        "arguments": vars(args),
        "device": study.retrain.device,
        "fingerprints": run.fingerprints(queries),
    }
    results.save(result, place, markdown=members_markdown(result), **origin)


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Verdict on one prediction: its most helpful (or harmful) rows are removed and the model is
retrained.

A verdict has the change of the margin, as a replay of the same removal predicts it and as measured,
and whether the prediction flipped (or was mended). The control arm removes as many random rows of
the same classes. One word says what came out, see `word_of`.

Symbols: N training rows, L removals, R retrain seeds, D draws of the random arm.
"""

from dataclasses import dataclass

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.arguments import MIN_SEEDS
from attribution.evidence.counterfactual import Removals, is_right, listed, same_groups
from attribution.evidence.kept_verdicts import share_right
from attribution.evidence.stats import count_to_tell, t_interval
from attribution.evidence.store import Job
from attribution.evidence.study import Study
from attribution.evidence.what_if import predicted_changes
from attribution.files import Refused
from attribution.influence.analysis import Influence
from attribution.influence.stored import find_scores, most_helpful, remedy, scores_named
from attribution.processes import rank_and_size
from attribution.training.arguments import custom_flags
from attribution.training.queries import Questions, ask, predict_run
from attribution.training.run import Run

# Name of the control arm, by whether the task is a regression.
CONTROL = {False: "random, same classes", True: "random, same tenths of the label"}
TENTHS = np.linspace(0.1, 0.9, 9)
MOST_SEEDS = 50  # that an answer is worth


@dataclass(frozen=True)
class Target:
    """One query that is checked."""

    place: int  # among the study's queries
    scores: np.ndarray  # (N,)
    about: dict  # query (its number or None), file_row, texts, label, target: of the verdict


@dataclass(frozen=True)
class Check:
    """Removals and retrains behind a verdict."""

    score: str  # name of the scores
    removals: Removals
    draws: int  # of the random arm
    random_seed: int


# --- targets --------------------------------------------------------------------------------------


def validation_targets(
    queries: GlueDataset, scores: np.ndarray, numbers: list[int]
) -> list[Target]:
    """Targets among the validation rows, with their scores (Q, N). Raises Refused for a row that
    does not exist.
    """
    targets = []
    for number in numbers:
        i = queries.place_of(number, "targets")
        texts = queries.columns_of(i)
        about = {
            "query": number,
            "file_row": queries.file_row(i),
            "texts": texts,
            "label": queries.label_name(i),
            "target": "label",
        }
        targets.append(Target(i, scores[i], about))
    return targets


def custom_target(
    run: Run, name: str, texts: list[str], label: str | None
) -> tuple[Questions, Target]:
    """(custom query, its target).

    Raises Refused if analyze.py has stored no scores of this name for it.
    """
    questions = ask(run, [texts], [label])
    scores = scores_named(run, name + questions.suffix, questions.data.fingerprint())
    if scores is None:
        found = find_scores(run, questions.data.fingerprint())
        command = remedy(run, name, found, more=custom_flags(texts, label))
        raise Refused(f"there are no scores {name} of this query; {command}")
    about = {
        "query": None,
        "file_row": None,
        "texts": texts,
        "label": questions.data.exact_label(0),
        "target": questions.targets[0],
    }
    return questions, Target(0, scores[0], about)


# --- the check ------------------------------------------------------------------------------------


def removed_rows(train: GlueDataset, target: Target, check: Check) -> dict[tuple, np.ndarray]:
    """(arm, level, draw) -> rows that are removed."""
    order = most_helpful(target.scores, check.removals.direction)
    groups = train.labels
    if train.task.regression:  # the tenth of the label
        groups = np.digitize(groups, np.quantile(groups, TENTHS))
    control = CONTROL[train.task.regression]
    removed = {}
    for level, count in enumerate(check.removals.counts):
        top = order[:count]
        removed[check.score, level, 0] = top
        for draw in range(check.draws):
            rows = same_groups(groups, top, check.random_seed, target.place, draw)
            removed[control, level, draw] = np.sort(rows)
    return removed


def run_check(
    study: Study,
    targets: list[Target],
    check: Check,
    replays: Influence | None,
    dry_run: bool,
) -> list[dict] | None:
    """Verdict on each target; None after a dry run. Stored retrains are not repeated.

    replays: of the study's queries, to predict changes; None without stored ones. Raises Refused if
    more rows are to be removed than there are.
    """
    count = len(study.train)
    if check.removals.counts[-1] >= count:
        raise Refused(
            f"--removals {check.removals.counts[-1]} is not less than the {count} training rows"
        )
    everything = np.arange(count)
    removed = [removed_rows(study.train, target, check) for target in targets]
    starts = {seed: Job.of(everything, seed) for seed in check.removals.retrain_seeds}
    jobs = {
        (t, *place, seed): Job.of(np.delete(everything, rows), seed)
        for t, arms in enumerate(removed)
        for place, rows in arms.items()
        for seed in check.removals.retrain_seeds
    }
    if not study.announce([*starts.values(), *jobs.values()], dry_run):
        return None
    start = study.run_keyed(starts, "nothing removed")
    retrains = study.run_keyed(jobs, "rows removed")
    predicted: dict = {}
    if replays is not None and rank_and_size()[0] == 0:
        places = [target.place for target in targets]
        groups = [list(arms.values()) for arms in removed]
        predicted = predicted_changes(replays, dict(zip(places, groups, strict=True)))
    by = replays and {"scores": replays.name, "checkpoints": len(replays.analyses)}
    said: list[str | None] = [None] * len(targets)
    task = study.train.task
    if not task.regression and rank_and_size()[0] == 0:
        asked = study.queries.subset([target.place for target in targets])
        said = [task.name_of(one) for one in predict_run(study.run, asked).argmax(-1).tolist()]
    verdicts = []
    for t, (target, arms) in enumerate(zip(targets, removed, strict=True)):
        before = {seed: found[target.place] for seed, found in start.items()}
        after = {key[1:]: found[target.place] for key, found in retrains.items() if key[0] == t}
        changes = dict(zip(arms, predicted.get(target.place, []), strict=False))
        found = judge(study, target, check, arms, before, after, changes)
        verdicts.append(found | {"predicted_by": by, "said": said[t]})
    return verdicts


def judge(
    study: Study,
    target: Target,
    check: Check,
    removed: dict[tuple, np.ndarray],
    before: dict,
    after: dict,
    predicted: dict,
) -> dict:
    """Verdict on one target.

    before: seed -> (margin, correctness) with nothing removed; after: (arm, level, draw, seed) ->
    the same without the removed rows. predicted: (arm, level, draw) -> replayed change of each
    member, if known.
    """
    seeds = list(check.removals.retrain_seeds)
    start = np.array([before[seed] for seed in seeds])
    verdict = target.about | {
        "score": check.score,
        "direction": check.removals.direction,
        "recipe": study.retrain.recipe,
        "removals": check.removals.counts,
        "seeds": seeds,
        "margins": listed(start[:, 0]),
        "right": listed(start[:, 1]),
        "arms": {},
        "regression": study.train.task.regression,
    }
    margins_without = {}  # (arm, level) -> (R,)
    for arm in dict.fromkeys(place[0] for place in removed):
        verdict["arms"][arm] = []
        for level, count in enumerate(check.removals.counts):
            draws = [place for place in removed if place[:2] == (arm, level)]
            retrains = np.array([[after[*place, seed] for seed in seeds] for place in draws])
            margins = retrains[..., 0].mean(0)
            correct = retrains[..., 1].ravel()
            margins_without[arm, level] = margins
            change, interval = t_interval(margins - start[:, 0])
            rows = [removed[place] for place in draws]
            changes = [predicted[place] for place in draws if place in predicted]
            verdict["arms"][arm].append(
                {
                    "removed": count,
                    "rows": [part.tolist() for part in rows],
                    "change": change,
                    "interval": interval,
                    "right": share_right(correct),
                    "predicted": t_interval(np.mean(changes, axis=0)) if changes else None,
                    "outcome": None
                    if verdict["regression"]
                    else outcome(start[:, 1], correct, check.removals.direction),
                }
            )
    control = CONTROL[verdict["regression"]]
    for level, found in enumerate(verdict["arms"][check.score]):
        more = margins_without[check.score, level] - margins_without[control, level]
        difference, interval = t_interval(more)
        found |= {"difference": difference, "difference_interval": interval}
        found["word"], found["seeds"] = word_of(found, check.removals.direction, len(seeds))
    return verdict


def word_of(level: dict, direction: str, seeds: int) -> tuple[str, int | None]:
    """(verdict in a word, seeds that it would take if these cannot tell).

    "confirmed": the margin moves as the scores say, and further than without random rows: both
    95 % intervals are on that side of 0. "not confirmed": it moves the other way, or so little that
    MOST_SEEDS would not show it. Otherwise "cannot tell".
    """
    sign = -1 if direction == "helpful" else 1
    needed = []
    for mean, interval in (
        (level["change"], level["interval"]),
        (level["difference"], level["difference_interval"]),
    ):
        if interval is None or not np.isfinite(mean):
            return "cannot tell", MIN_SEEDS if seeds < MIN_SEEDS else None
        half = (interval[1] - interval[0]) / 2
        if sign * mean <= 0:
            return "not confirmed", None
        count = count_to_tell(mean, half, seeds, MOST_SEEDS)
        if count is None:
            return "not confirmed", None
        needed.append(count)
    if max(needed) <= seeds:
        return "confirmed", None
    return "cannot tell", max(needed)


def outcome(before: np.ndarray, after: np.ndarray, direction: str = "helpful") -> str:
    """Fate of the prediction, by the retrains with nothing removed (R,) and without the rows.

    As `counterfactual.is_right` has it; where half of the former are right, it counts as what
    the study of this direction takes for a target.
    """
    if share_right(before) is None or share_right(after) is None:
        return "not known: the retrains diverged"
    was = bool(is_right(before, direction == "helpful"))
    fates = ("stays wrong", "mended"), ("flipped", "stays right")
    return fates[was][bool(is_right(after, was))]

"""The linear datamodeling score (LDS) of many scores against one ground truth.

Symbols: M masks, N training rows, Q queries, R repeats, K columns that are controlled for.
"""

import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.data.tasks import MARGIN
from attribution.evidence import baselines, stats
from attribution.evidence.arguments import BASELINES
from attribution.evidence.ground_truth import GroundTruth
from attribution.evidence.study import models_of
from attribution.files import Refused, read_json, sha256_of
from attribution.influence.analysis import Influence, stored_influence
from attribution.influence.settings import ScoreSpec, analyze_command
from attribution.influence.stored import (
    TOP,
    StoredScores,
    find_scores,
    scores_named,
    seconds_of,
    seeds_of,
)
from attribution.replay.descent import Targets
from attribution.training.members import mean_of
from attribution.training.queries import predict_run
from attribution.training.run import Run

REFERENCE = "ekfac"  # the score with which each is compared
MIN_MASKS = 10  # of stored ground truth that a page shows


@dataclass(frozen=True)
class Evidence:
    """Results of retraining on M subsets, and controls of the correlation with them."""

    masks: np.ndarray  # (M, N), 1 = kept
    margins: np.ndarray  # (M, R, Q)
    controls: np.ndarray | None = None  # (M, K): kept rows of each class, or sums of their labels
    outputs: np.ndarray | None = None  # (M, R, Q), of a regression
    residuals: np.ndarray | None = None  # (Q,): label minus output of a regression's scored model

    def of(self, chosen: np.ndarray) -> "Evidence":
        """Evidence of the chosen masks (M,) only."""
        by_mask = ("masks", "margins", "controls", "outputs")
        there = {name: part for name in by_mask if (part := getattr(self, name)) is not None}
        return replace(self, **{name: part[chosen] for name, part in there.items()})

    def kinds(self) -> dict[str, tuple]:
        """Kind -> (retrained values (M, R, Q), controls, sign of each query's scores (Q,)).

        plain: margins; balanced: margins, controlled; output: the output of a regression. Its
        gradient is that of the margin divided by twice the residual, so that a score of the margin
        predicts it up to the residual's sign. Members differ in residuals; their mean for the
        output is `MemberScores.outputs`.
        """
        one = np.ones(self.margins.shape[2])
        found: dict[str, tuple] = {"plain": (self.margins, None, one)}
        if self.controls is not None:
            found["balanced"] = (self.margins, self.controls, one)
        if self.outputs is not None and self.residuals is not None:
            found["output"] = (self.outputs, None, np.sign(self.residuals))
        return found


@dataclass(frozen=True)
class MemberScores:
    """Scores of single members behind the evaluated means."""

    singles: dict[str, list[np.ndarray]] = field(default_factory=dict)  # name -> (Q, N) of each
    outputs: dict[str, np.ndarray] = field(default_factory=dict)  # name -> (Q, N) for the output


def usable_masks(margins: np.ndarray) -> np.ndarray:
    """(M,) bool: masks for which margins (M, R, Q) are complete. Raises Refused for too few."""
    complete = stats.complete_masks(margins)
    if complete.sum() < stats.MIN_MASKS:
        raise Refused(
            f"only {complete.sum()} masks have finite margins; a correlation needs "
            f"{stats.MIN_MASKS}"
        )
    return complete


def evaluate(
    scores: dict[str, np.ndarray],
    evidence: Evidence,
    num_bootstrap: int,
    members: MemberScores | None = None,
) -> dict:
    """Result of the study, as plain numbers. scores: name -> (Q, N)."""
    members = members or MemberScores()
    complete = usable_masks(evidence.margins)
    missing = int((~np.isfinite(evidence.margins)).any(2).sum())
    evidence = evidence.of(complete)
    masks = evidence.masks
    margins = evidence.margins
    draws = stats.draw(len(masks), margins.shape[2], num_bootstrap)
    result = {
        "masks": len(masks),
        "incomplete_masks": int((~complete).sum()),
        "missing_repeats": missing,
        "repeats": margins.shape[1],
        "queries": margins.shape[2],
        "rows": masks.shape[1],
        "alpha": float(masks.mean()),
        "scores": {name: without_retrains(values, scores) for name, values in scores.items()},
    }
    for kind, column in evidence.kinds().items():
        add_kind(result, kind, scores, masks, column, draws, members)
    return result


def without_retrains(values: np.ndarray, scores: dict[str, np.ndarray]) -> dict:
    """Facts about a score that take no retrain: rows at the top, agreement with EKFAC."""
    top = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :TOP]
    agreement = None
    if REFERENCE in scores:
        agreement = stats.mean_spearman(values, scores[REFERENCE])
    return {"rows_at_top": len(np.unique(top)), "spearman_with_ekfac": agreement}


def add_kind(
    result: dict,
    kind: str,
    scores: dict[str, np.ndarray],
    masks: np.ndarray,
    column: tuple,
    draws: stats.Draws,
    members: MemberScores,
) -> None:
    """Adds one column of the table. column: a value of `Evidence.kinds`."""
    margins, controls, sign = column
    truth = stats.make_truth(stats.mean_margins(margins), controls)
    signed = {name: values * sign[:, None] for name, values in scores.items()}
    if kind == "output":
        signed |= members.outputs
    agreements = {name: stats.agreement(values, masks, truth) for name, values in signed.items()}
    samples = {name: stats.bootstrap(agreed, truth, draws) for name, agreed in agreements.items()}
    ceiling = stats.ceiling_of(margins, draws, controls)
    found = {
        "ceiling": ceiling and ceiling.value,
        "ceiling_interval": ceiling and stats.interval(ceiling.draws),
        "ceiling_known": ceiling is not None and ceiling.known,
        "agreement": ceiling and [ceiling.agreement, *stats.interval(ceiling.agreements)],
        "constant_queries": int((~truth.valid).sum()),
        "chance": max(stats.chance(agreed, truth) for agreed in agreements.values()),
    }
    for part, value in found.items():
        result.setdefault(part, {})[kind] = value
    best = max(agreements, key=lambda name: agreements[name].mean)
    for name, agreed in agreements.items():
        entry = {
            "lds": agreed.mean,
            "interval": stats.interval(samples[name]),
            "behind_best_interval": stats.interval(samples[best] - samples[name]),
            "constant": agreed.constant,
        }
        if REFERENCE in scores and name != REFERENCE:
            entry["difference"] = agreed.mean - agreements[REFERENCE].mean
            entry["difference_interval"] = stats.interval(samples[name] - samples[REFERENCE])
        entry |= stats.share_of_ceiling(agreed.mean, samples[name], ceiling)
        if name in members.singles and kind != "output":
            entry["single"] = [
                stats.agreement(one, masks, truth).mean for one in members.singles[name]
            ]
        result["scores"][name][kind] = entry


# --- scores of a run ------------------------------------------------------------------------------


def announce(run: Run, queries: GlueDataset, first_query: int, max_queries: int) -> None:
    """Prints, before long work, the stored scores that will be left out, and how to make some if
    none fit.
    """
    found = find_scores(run, queries.fingerprint(), first_query)
    for name, scores in found.items():
        if scores.stale:
            print(f"{name}: will be left out, {scores.stale}", file=sys.stderr)
    if all(scores.stale for scores in found.values()):
        again = "--overwrite" if found else ""
        command = analyze_command(run, ScoreSpec(first_query=first_query), max_queries, again)
        print(
            "no stored scores fit, so the table will hold baselines only; make some with: "
            f"{command}",
            file=sys.stderr,
        )


def evaluate_run(
    run: Run,
    train: GlueDataset,
    queries: GlueDataset,
    truth: GroundTruth,
    *,
    first_query: int,
    num_bootstrap: int,
    model_name_or_path: str | None,
) -> tuple[dict, list[int]]:
    """(result of `evaluate` for stored scores and baselines, seeds of the scored models).

    model_name_or_path: the start model, if it has moved.
    """
    models = models_of(run, model_name_or_path)
    found_scores = find_scores(run, queries.fingerprint(), first_query)
    stored = {name: found for name, found in found_scores.items() if found.stale is None}
    scores = {name: found.values() for name, found in stored.items()}
    for name in BASELINES:
        scores[name] = baselines.baseline_scores(name, queries, train, models)
    places = {place for found in stored.values() for place in found.spec.places(run)}
    residuals = {  # (Q,), label minus output, of every checkpoint behind scores of a regression
        place: queries.labels - predict_run(checkpoint, queries).squeeze(-1).numpy()
        for place in sorted(places)
        if queries.task.regression and (checkpoint := Run.read(place)) is not None
    }
    members = member_scores(run, train, queries, stored, residuals)
    result = evaluate(scores, evidence_of(truth, train, queries, models), num_bootstrap, members)
    for name, found in stored.items():
        seconds = seconds_of(run, found.spec)
        result["scores"][name]["seconds"] = seconds and round(seconds)
    result["residuals"] = disagreeing_residuals(list(residuals.values()))
    return result, seeds_of(run, [found.spec for found in stored.values()])


def evidence_of(truth: GroundTruth, train, queries, models: baselines.Models) -> Evidence:
    """Ground truth with its controls."""
    if not train.task.regression:
        return Evidence(truth.masks, truth.margins, stats.kept_counts(truth.masks, train.labels))
    sums = truth.masks.astype(np.float64) @ train.labels[:, None]
    residuals = queries.labels - models.outputs(queries)
    return Evidence(truth.masks, truth.margins, sums, truth.outputs, residuals)


def member_scores(
    run: Run,
    train: GlueDataset,
    queries: GlueDataset,
    stored: dict[str, StoredScores],
    residuals: dict,
) -> MemberScores:
    """Scores of the single members behind stored means, and scores of a regression's output.

    A checkpoint's scores of the margin, divided by its residuals, are its scores of a regression's
    output; the mean of them is taken as of scores, by the same divisors. residuals: folder of a
    checkpoint -> (Q,).
    """
    singles: dict[str, list[np.ndarray]] = {}
    outputs: dict[str, np.ndarray] = {}
    rows = queries.fingerprint()
    for name, found in stored.items():
        spec = found.spec
        if residuals and spec.factor_strategy == "replay":
            outputs[name] = replayed_outputs(stored_influence(run, train, queries, found))
        if spec.single:
            continue
        places = spec.places(run)
        there = [
            part
            for place in places
            if (one := Run.read(place)) is not None
            and (part := scores_named(one, spec.of_one_checkpoint.name, rows)) is not None
        ]
        if there and len(places) > 1:
            singles[name] = there
        if residuals and len(there) == len(places) and name not in outputs:
            divided = []
            for part, place in zip(there, places, strict=True):
                by = residuals[place][:, None]
                divided.append(np.divide(part, by, out=np.zeros(part.shape), where=by != 0))
            outputs[name] = mean_of(zip(divided, found.divisors, strict=True))
    return MemberScores(singles, outputs)


def replayed_outputs(influence: Influence) -> np.ndarray:
    """Scores (Q, N) of a regression's replayed output, the mean over members."""
    total = np.zeros((len(influence.queries), len(influence.train)))
    for replay in influence.replays():
        unlabelled = torch.full_like(replay.queries.labels, torch.nan)
        asked = replace(replay, queries=Targets(unlabelled, 1))
        total += asked.scores().cpu().numpy()
    return influence.unit() * total / len(influence.analyses)


def disagreeing_residuals(residuals: list[np.ndarray]) -> dict | None:
    """Number of queries for whose residuals (Q,) the signs differ between checkpoints; None for
    fewer than two checkpoints.
    """
    if len(residuals) < 2:
        return None
    signs = np.sign(np.stack(residuals))
    apart = int((signs != signs[0]).any(0).sum())
    return {"apart": apart, "queries": signs.shape[1], "models": len(signs)}


# --- stored ground truth --------------------------------------------------------------------------


def random_subsets(run: Run, query_rows: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(masks (M, N), margins (M, R, Q)) of the largest stored ground truth of the run's recipe.

    None without one. query_rows: fingerprint of the validation rows. Reads the exports of
    evaluate_lds.py, which are of random subsets by construction.
    """
    best: tuple[np.ndarray, np.ndarray] | None = None
    wanted = {
        "recipe": run.recipe,
        "training rows": run.train_rows,
        "query rows": query_rows,
        "run's start": run.start_parts(),
        "margin": MARGIN,
    }
    for path in sorted((run.folder / "retraining").glob("*/lds_*.npz")):
        record = read_json(path.with_suffix(".json")) or {}
        made = record.get("fingerprint", {})
        fits = all(made.get(part) == value for part, value in wanted.items())
        if not fits or record.get("arrays") != sha256_of(path):
            continue
        with np.load(path, allow_pickle=False) as arrays:
            masks = arrays["masks"]
            margins = arrays["margins"]
        complete = stats.complete_masks(margins)
        masks = masks[complete]
        margins = margins[complete]
        if len(masks) >= MIN_MASKS and (best is None or margins.size > best[1].size):
            best = masks, margins
    return best

"""Everything that evaluate_lds.py evaluates: stored scores, baselines, means of several, and what
stands beside them.

`asked` are the arguments of evaluate_lds.py, name -> value. Symbols: Q queries, N training rows.
"""

import shlex
import sys
from pathlib import Path

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence import baselines, lds, stats
from attribution.evidence.corrected import check_corrections, check_masks, correct_all
from attribution.evidence.ground_truth import GroundTruth
from attribution.evidence.study import models_of
from attribution.files import Refused, meant, others
from attribution.influence.names import with_members
from attribution.influence.stored import look_up, open_scores_of, seeds_behind, stored_scores
from attribution.training.members import Members, mean_of
from attribution.training.queries import predict_run
from attribution.training.recipe import queries_flag
from attribution.training.run import open_run


def announce(folder: Path, run: dict, queries: GlueDataset, asked: dict) -> None:
    """Says before the long work which stored scores will not be in the table, and how to have some
    where none fit.
    """
    found = look_up(folder, run, queries.fingerprint(), asked["first_query"], corrected=False)
    for name, (_, why) in found.items():
        if why:
            print(f"{name}: will be left out, {why}", file=sys.stderr)
    fitting = [name for name, (_, why) in found.items() if why is None]
    for name in asked["correct"]:
        if name not in fitting:
            known = ", ".join(fitting) or "none"
            raise Refused(
                f"--correct: no stored score {name!r} fits{meant(name, fitting)}; there are {known}"
            )
    check_corrections(folder, run, asked["correct"])
    if fitting:
        return
    limit, again = (
        queries_flag(asked["max_queries"], asked["first_query"]),
        " --overwrite" * bool(found),
    )
    where = (
        f"--dataset_name {run['dataset_name']} --checkpoint_dir {shlex.quote(str(folder.parent))}"
    )
    command = f"python analyze.py {where}{limit}{again}"
    print(
        f"no stored scores fit, so the table will hold baselines only; make some with: {command}",
        file=sys.stderr,
    )


def open_scores(
    folder: Path, run: dict, queries: GlueDataset, first_query: int
) -> dict[str, np.ndarray]:
    """Name -> scores (Q, N) of everything that fits this run; what does not is left out, and that
    is said.

    Corrected scores are left out: they have seen retrains.
    """
    scores, stale = stored_scores(folder, run, queries.fingerprint(), first_query, corrected=False)
    for name, reason in stale.items():
        print(f"{name}: left out, {reason}", file=sys.stderr)
    return scores


def add_ensembles(
    asked: dict, run: dict, scores: dict[str, np.ndarray], queries: GlueDataset
) -> list[int]:
    """Adds the mean over checkpoints of every score that all of them have; returns the seeds of the
    others.
    """
    members, seeds, weights = [], [], {run["weights"]}
    for directory in asked["ensemble"]:
        folder, other = open_run(directory, asked["dataset_name"])
        for part in ("train_rows", "recipe"):
            if other[part] != run[part]:
                raise Refused(
                    f"--ensemble {directory} has {others([part.replace('_', ' ')])} than this run"
                )
        if other["weights"] in weights:
            raise Refused(
                f"--ensemble {directory} has the same weights as another member; train it with "
                "another --seed"
            )
        weights.add(other["weights"])
        members.append(open_scores(folder, other, queries, asked["first_query"]))
        seeds.append(other["seed"])
    shared = [name for name in scores if members and all(name in other for other in members)]
    if members and not shared:
        raise Refused(
            "the checkpoints of --ensemble share no stored score; run analyze.py on each of them"
        )
    for name in shared:
        scores[f"{name}, {len(members) + 1} seeds"] = mean_of(
            [scores[name], *(other[name] for other in members)]
        )
    return seeds


def collect_scores(
    asked: dict, folder: Path, run: dict, train, queries, models: baselines.Models
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Name -> scores (Q, N): stored ones, baselines, ensembles and combinations; seeds of the
    models behind them.
    """
    scores = open_scores(folder, run, queries, asked["first_query"])
    seeds = [*seeds_behind(run, scores), *add_ensembles(asked, run, scores, queries)]
    scores |= {
        name: baselines.baseline_scores(name, queries, train, models) for name in baselines.NAMES
    }
    for names in asked["combine"]:
        if unknown := [name for name in names if name not in scores]:
            raise Refused(
                f"--combine: there is no score {unknown[0]!r}; there are {', '.join(scores)}"
            )
        scores[" + ".join(names)] = stats.combine(
            [scores[name] for name in names], asked["combine_by"]
        )
    return scores, seeds


def beside_scores(
    asked: dict,
    folder: Path,
    run: dict,
    queries: GlueDataset,
    scores: dict[str, np.ndarray],
    residuals: dict[Path, np.ndarray],
) -> lds.Beside:
    """What stands beside the scores: those of the model before fine-tuning, and those of single
    members.

    residuals: of a regression, see `residuals_of`. A checkpoint's scores of the margin, divided by
    its residuals, are its scores of the output; of several the mean is taken, as of scores.
    """
    starts, singles, outputs = {}, {}, {}
    for name in scores:
        start = scores.get(with_members(name, Members(start=True)))
        if start is not None and start is not scores[name]:
            starts[name] = start
        members = Members.of(name)
        if members.single or "," in name:
            continue
        single, places = with_members(name, Members()), members.places(folder, run)
        parts = [open_scores_of(place, single, queries, asked["first_query"]) for place in places]
        found = [part for part in parts if part is not None]
        if found and len(places) > 1:
            singles[name] = found
        if residuals and len(found) == len(places):
            outputs[name] = mean_of(map(divided, found, (residuals[place] for place in places)))
    return lds.Beside(starts, singles, outputs)


def divided(scores: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Scores (Q, N) by residuals (Q,); 0 where a residual is 0, and with it the scores of the
    margin.
    """
    by = residuals[:, None]
    return np.divide(scores, by, out=np.zeros(scores.shape), where=by != 0)


def residuals_of(folder: Path, run: dict, queries: GlueDataset, names) -> dict[Path, np.ndarray]:
    """Place -> residuals (Q,), label minus output, of every checkpoint behind scores of these
    names.

    Empty for classes.
    """
    if not queries.task.regression:
        return {}
    places = sorted({place for name in names for place in Members.of(name).places(folder, run)})
    there = [place for place in places if (place / "run.json").exists()]
    return {
        place: queries.labels - predict_run(place, queries).squeeze(-1).numpy() for place in there
    }


def residual_signs(residuals: dict[Path, np.ndarray]) -> dict | None:
    """For how many queries trained checkpoints disagree about the residual's sign; None where there
    are not two.
    """
    trained = [values for place, values in residuals.items() if place.parts[-2:] != ("steps", "0")]
    if len(trained) < 2:
        return None
    signs = np.sign(np.stack(trained))
    return {
        "apart": int((signs != signs[0]).any(0).sum()),
        "queries": signs.shape[1],
        "models": len(signs),
    }


def evidence_of(truth: GroundTruth, train, queries, models: baselines.Models) -> lds.Evidence:
    """The ground truth, and what it is controlled for."""
    if not train.task.regression:
        return lds.Evidence(
            truth.masks, truth.margins, stats.kept_counts(truth.masks, train.labels)
        )
    sums = truth.masks.astype(np.float64) @ train.labels[:, None]
    return lds.Evidence(
        truth.masks, truth.margins, sums, truth.outputs, queries.labels - models.outputs(queries)
    )


def evaluate(
    asked: dict, folder: Path, run: dict, rows: tuple[GlueDataset, GlueDataset], truth: GroundTruth
) -> tuple[dict, list[int]]:
    """(what `lds.evaluate` says of every score, seeds of the scored models). rows: training rows
    and queries.
    """
    train, queries = rows
    models = models_of(folder, run, train.task, asked["model_name_or_path"])
    scores, seeds = collect_scores(asked, folder, run, train, queries, models)
    evidence = evidence_of(truth, train, queries, models)
    if asked["correct"]:
        check_masks(evidence)
    residuals = residuals_of(folder, run, queries, scores)
    beside = beside_scores(asked, folder, run, queries, scores, residuals)
    result = lds.evaluate(scores, evidence, asked["num_bootstrap"], beside)
    if asked["correct"]:
        wanted = {name: scores[name] for name in asked["correct"]}
        result["corrected"] = correct_all(
            folder, run, rows, wanted, evidence, asked["num_bootstrap"], asked["first_query"]
        )
    return result | {"residuals": residual_signs(residuals)}, seeds

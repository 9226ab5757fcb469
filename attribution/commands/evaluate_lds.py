"""Outline of evaluate_lds.py: retrains on subsets, correlates, prints and stores."""

import argparse

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence import lds, stats
from attribution.evidence.ground_truth import Subsets, external_truth, own_truth
from attribution.evidence.lds import REFERENCE, usable_masks
from attribution.evidence.study import open_study
from attribution.files import Refused
from attribution.influence.stored import most_helpful
from attribution.show import plotting, results, tables
from attribution.show.listing import Context, describe_row, headline, plain_row
from attribution.show.results import Place
from attribution.training.recipe import recipe_of
from attribution.training.run import Run
from pipeline import quiet_libraries


def evaluate_lds(args: argparse.Namespace, run: Run, place: Place) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    train, known = run.rows(max(args.first_query + args.max_queries, args.retrain_queries))
    queries = known.window(args.first_query, args.max_queries)
    index = None
    if args.query_index is not None:
        index = queries.place_of(args.query_index, "query_index")
    elif not args.dry_run:
        place.check(run.fingerprints(queries))
    recipe = recipe_of(vars(args), args.dataset_name, run.recipe)
    study = open_study(
        run,
        (train, known),
        recipe,
        max_queries=args.max_queries,
        first_query=args.first_query,
        model_name_or_path=args.model_name_or_path,
        jobs_per_device=args.jobs_per_device,
        retrains=not args.dry_run and args.query_index is None and args.masks_path is None,
    )
    if args.query_index is None:
        lds.announce(run, queries, args.first_query, args.max_queries)
    subsets = Subsets(
        args.num_masks,
        args.num_repeats,
        args.alpha,
        args.mask_seed,
        args.stratify,
        args.retrain_seed,
    )
    external = args.masks_path is not None
    if external:
        truth = external_truth(args.masks_path, args.margins_path, study)
    else:
        truth = own_truth(study, subsets, wait=args.query_index is None, dry_run=args.dry_run)
    if truth is None:
        return
    if index is not None:
        stored = lds.fitting_scores(run, queries, args.first_query)
        scores = {name: found.values() for name, found in stored.items()}
        show_query_lds(queries, train, scores, index, truth.masks, truth.margins)
        return
    result, seeds = lds.evaluate_run(
        run,
        train,
        queries,
        truth,
        first_query=args.first_query,
        num_bootstrap=args.num_bootstrap,
        model_name_or_path=args.model_name_or_path,
    )
    result |= {
        "dataset": args.dataset_name,
        "recipe": recipe,
        "evaluation": run.evaluation,
        "stratified": args.stratify,
        "foreign": external,
        "shared_seeds": [] if external else sorted({*seeds} & {*subsets.retrain_seeds}),
        "retrained_accuracy": truth.accuracy(train.task.num_labels),
        "retrained_pearson": truth.pearson(queries.labels),
    }
    print(tables.lds_text(result))
    results.save(
        result,
        place,
        markdown=tables.lds_markdown(result),
        draw=plotting.draw_lds,
        arguments=vars(args),
        device=study.retrain.device,
        fingerprints=run.fingerprints(queries),
        arrays=truth.arrays(),
    )


def show_query_lds(
    queries: GlueDataset,
    train: GlueDataset,
    scores: dict[str, np.ndarray],
    place: int,
    masks: np.ndarray,
    margins: np.ndarray,
) -> None:
    """Prints a query, its top influential row, and how well stored scores predict its margins.

    scores: name -> (Q, N); ekfac's are taken, else the first. place: among the queries. masks (M,
    N), margins (M, R, Q).
    """
    print(headline(queries, place))
    name = REFERENCE if REFERENCE in scores else next(iter(scores), None)
    if name is None:
        raise Refused("no stored scores; make them with analyze.py")
    complete = usable_masks(margins)
    truth = stats.make_truth(stats.mean_margins(margins[complete]))
    agreed = stats.agreement(scores[name], masks[complete], truth)
    top = int(most_helpful(scores[name][place])[0])
    print(f"  most influential by {name}:")
    print(plain_row(describe_row(Context(train), top, float(scores[name][place, top]))))
    print(
        f"  LDS of {name} for this query: {agreed.per_query[place]:.3f} "
        f"({complete.sum()} masks; mean over queries {agreed.mean:.3f})"
    )

"""Outline of evaluate_lds.py: retrains on subsets, correlates, prints and stores."""

import argparse

from attribution.evidence import lds
from attribution.evidence.ground_truth import Subsets, external_truth, own_truth
from attribution.evidence.study import open_study
from attribution.show import plotting, results, tables
from attribution.show.results import Place
from attribution.training.recipe import recipe_of
from attribution.training.run import Run
from pipeline import quiet_libraries


def evaluate_lds(args: argparse.Namespace, run: Run, place: Place) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    train, known = run.rows(max(args.first_query + args.max_queries, args.retrain_queries))
    queries = known.window(args.first_query, args.max_queries)
    place.check(run.fingerprints(queries), args.dry_run)
    recipe = recipe_of(vars(args), args.dataset_name, run.recipe)
    study = open_study(
        run,
        (train, known),
        recipe,
        max_queries=args.max_queries,
        first_query=args.first_query,
        model_name_or_path=args.model_name_or_path,
        jobs_per_device=args.jobs_per_device,
        retrains=not args.dry_run and args.masks_path is None,
    )
    lds.announce(run, queries, args.first_query, args.max_queries)
    subsets = Subsets(
        args.num_masks,
        args.num_repeats,
        args.alpha,
        args.mask_seed,
        args.retrain_seed,
    )
    external = args.masks_path is not None
    if external:
        truth = external_truth(args.masks_path, args.margins_path, study)
    else:
        truth = own_truth(study, subsets, dry_run=args.dry_run)
    if truth is None:
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
        "foreign": external,
        "shared_seeds": [] if external else sorted({*seeds} & {*subsets.retrain_seeds}),
        "retrained_accuracy": truth.accuracy(train.task.num_labels),
        "retrained_pearson": truth.pearson(queries.labels),
    }
    print(tables.lds_text(result, args.all_columns))
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

"""Fits influence factors, scores every training row for every query, and shows the most influential rows.

    python analyze.py --dataset_name demo
    python analyze.py --dataset_name demo --query_index 79 --top_k 5      # reads what is stored
    python analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 \\
        --checkpoint_dir ./checkpoints --factor_strategy ekfac --use_half_precision

A positive score: the training row helps; without it, the query's margin falls. Scores are stored as
CHECKPOINT_DIR/DATASET_NAME/influence/scores/NAME/pairwise_scores.safetensors, key `all_modules`,
float32, shape (Q queries, N training rows), both in the order of the data set.
"""

import argparse
import functools
import gc
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from kronfluence.analyzer import prepare_model as prepare_stock_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.utils.dataset import DataLoaderKwargs
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attribution import analysis, eigenbasis
from attribution.reading import show_query, show_self_influence
from attribution.store import (
    Refused,
    check_positive,
    environment,
    exclusive,
    fingerprint_of_tensors,
    intact,
    read_json,
    refuse_if_stale,
    run_script,
    sha256_of,
    write_json,
    write_tensors,
)
from pipeline import GlueDataset, InfluenceTask, collate, get_glue_dataset, get_task, load_tables, quiet_libraries

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
MAX_QUERIES = 2000


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What is analyzed.
    add("--dataset_name", required=True, help="the task that train.py was run for")
    add("--dataset_path", help="folder or hub id of the data set (as in training)")
    add("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where runs live, one folder a data set")
    add("--max_queries", type=int, default=MAX_QUERIES, help=f"use the first so many validation rows ({MAX_QUERIES})")
    # How scores are computed.
    add("--factor_strategy", choices=STRATEGIES, default="ekfac", help="curvature approximation (ekfac)")
    add("--use_half_precision", action="store_true", help="bfloat16 per-example gradients and products; the model, rotations and sums stay float32 or above")
    add("--covariance_dtype", choices=("float32", "float64"), help="type of covariance sums (float64; with --stock float32, where eigenvectors of close eigenvalues are left to rounding)")  # fmt: skip
    add("--query_gradient_rank", type=int, help="keep query gradients at this low rank (full rank)")
    add("--damping_factor", default="1e-8", help="number added to eigenvalues (1e-8, kronfluence's default), or 'heuristic' for a tenth of their mean")  # fmt: skip
    add("--seed", type=int, default=0, help="of the labels that factor fitting samples, and of low-rank projections (0)")
    add("--tf32", action="store_true", help="TF32 matrix products on Ampere GPUs and later")
    add("--stock", action="store_true", help="run kronfluence as it comes, padded to the maximum length")
    # How it runs.
    add("--query_batch_size", type=int, default=32, help="query rows a batch; lowered where memory is short (32)")
    add("--train_batch_size", type=int, default=64, help="training rows of maximum length a batch: shorter rows make larger batches of as many tokens; on a CPU at most 4,096 tokens (64)")  # fmt: skip
    add("--data_partitions", type=int, help="points from which an interrupted run goes on, a phase (so many that each is about ten minutes)")  # fmt: skip
    add("--rotate", choices=tuple(analysis.ROTATE), default="auto", help="side of the pairwise product that is rotated; auto takes the cheaper (for tests)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace stored results that were made from something else")
    add("--profile", action="store_true", help="print the table of actions with mean, calls, total and percentage")
    # What is shown.
    add("--query_index", type=int, help="show this query's most influential rows from stored scores, computing nothing")
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add("--self_influence", action="store_true", help="score every training row against itself and show the top rows")
    args = parser.parse_args(argv)
    check_positive(
        args, "query_batch_size", "train_batch_size", "top_k", "max_queries", "data_partitions", "query_gradient_rank"
    )
    args.damping_factor = parse_damping(args.damping_factor)
    if args.factor_strategy not in ("kfac", "ekfac"):
        args.covariance_dtype = None
    elif args.covariance_dtype is None and not args.stock:
        args.covariance_dtype = "float64"
    return args


def parse_damping(text: str) -> float | None:
    """A number, or None for kronfluence's heuristic. Raises Refused for anything else."""
    if text == "heuristic":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refused(f"--damping_factor must be a number from 0 up or 'heuristic', not {text!r}")
    return value


def factors_name(strategy: str, half: bool = False, stock: bool = False) -> str:
    """Name of the folder below influence/factors."""
    return strategy + "_half" * half + "_stock" * stock


def precision_name(args: argparse.Namespace) -> str:
    """What distinguishes results of one precision from another's."""
    names = ["bfloat16" if args.stock else "bfloat16 gradients"] if args.use_half_precision else []
    return " and ".join(names + ["tf32"] * args.tf32) or "float32"


def scores_name(
    strategy: str, half: bool = False, stock: bool = False, rank: int | None = None, damping: float | None = 1e-8
) -> str:
    """Name of the folder below influence/scores; what is at its default is left out."""
    name = factors_name(strategy, half, stock) + (f"_rank{rank}" if rank else "")
    if damping == 1e-8 or strategy == "identity":
        return name
    return name + f"_damping{'heuristic' if damping is None else f'{damping:g}'}"


def open_run(checkpoint_dir: Path, data_name: str) -> tuple[Path, dict]:
    """The run's folder and its run.json. Raises Refused where it is missing, half-written or another task's."""
    task, folder = get_task(data_name), checkpoint_dir / data_name
    run = read_json(folder / "run.json")
    command = f"run: python train.py --dataset_name {data_name} --checkpoint_dir {checkpoint_dir}"
    if run is None:
        state = "is half-written" if (folder / "model.safetensors").exists() else "is missing"
        raise Refused(f"the checkpoint {folder} {state}; {command}")
    if run.get("dataset_name") != data_name:
        raise Refused(f"the checkpoint {folder} was trained on {run.get('dataset_name')}, not {data_name}; {command}")
    if run.get("num_labels") != task.num_labels:
        raise Refused(f"the checkpoint {folder} has {run.get('num_labels')} labels, {data_name} {task.num_labels}; {command}")
    if not intact(folder, run.get("files")):
        raise Refused(f"the checkpoint {folder} is damaged (a file is missing or changed since training); {command}")
    return folder, run


def open_data(folder: Path, run: dict, dataset_path: str | None, max_queries: int) -> tuple[GlueDataset, GlueDataset]:
    """(training rows, query rows) of the run, tokenized as in training."""
    name = run["dataset_name"]
    shared = {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "max_length": run["max_length"],
        "tables": load_tables(name, dataset_path or run["dataset_path"]),
    }
    train = get_glue_dataset(name, "train", max_samples=run["max_train_samples"], **shared)
    if train.fingerprint() != run["train_rows"]:
        raise Refused(f"the training rows are not those of {folder}; give the --dataset_path of training, or train again")
    return train, get_glue_dataset(name, "valid", max_samples=max_queries, **shared)


class Influence:
    """One run under one set of analysis arguments: names, fingerprints, and the work itself."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder, self.run = open_run(args.checkpoint_dir, args.dataset_name)
        self.influence = self.folder / "influence"
        self.names = SimpleNamespace(
            factors=factors_name(args.factor_strategy, args.use_half_precision, args.stock),
            scores=scores_name(
                args.factor_strategy, args.use_half_precision, args.stock, args.query_gradient_rank, args.damping_factor
            ),
        )
        self.result = self.influence / "scores" / self.names.scores
        self.train, self.queries = open_data(self.folder, self.run, args.dataset_path, args.max_queries)
        identity = args.factor_strategy == "identity"
        self.factor_parts = {
            "weights": self.run["weights"], "training rows": self.run["train_rows"], "strategy": args.factor_strategy,
            "precision": precision_name(args), "covariance type": args.covariance_dtype,
            "path": "stock" if args.stock else "eigenbasis", "seed": None if identity else args.seed,
        }  # fmt: skip
        self.self_parts = self.factor_parts | {"damping": None if identity else repr(args.damping_factor)}
        self.score_parts = self.self_parts | {
            "query rows": self.queries.fingerprint(), "rank": args.query_gradient_rank,
            "rank seed": args.seed if args.query_gradient_rank else None,
        }  # fmt: skip
        self._analyzer = None
        self._fitted = False  # in this process: --overwrite replaces factors once, not for every kind of score

    # --- what is stored ---

    def stored(self, kind: str) -> torch.Tensor | None:
        """Stored scores of kind "pairwise" (Q, N) or "self" (N,), None where there are none or they are damaged.

        Raises Refused where they were made from something else.
        """
        parts = self.score_parts if kind == "pairwise" else self.self_parts
        if self.args.overwrite:
            return None
        record = refuse_if_stale(self.result / f"{kind}_scores.json", parts, f"{kind} scores")
        if record is None:
            return None
        if not intact(self.result, record["files"]):
            print(f"{self.result}: {kind} scores are damaged and are computed again", file=sys.stderr)
            return None
        return load_file(self.result / f"{kind}_scores.safetensors")["all_modules"]

    def save(self, kind: str, scores: torch.Tensor, seconds: dict) -> None:
        """Stores complete scores, then the record that makes them count."""
        path = self.result / f"{kind}_scores.safetensors"
        (self.result / f"{kind}_scores.json").unlink(missing_ok=True)
        write_tensors(path, {"all_modules": scores})
        parts = self.score_parts if kind == "pairwise" else self.self_parts
        arguments = {name: str(value) for name, value in vars(self.args).items()}
        write_json(self.result / f"{kind}_scores.json", {
            "fingerprint": parts, "files": {path.name: sha256_of(path)}, "shape": list(scores.shape),
            "seconds": seconds, "arguments": arguments, **environment(self.analyzer.state.device),
        })  # fmt: skip

    # --- what is computed ---

    @property
    def analyzer(self):
        """kronfluence's Analyzer around the trained model, made when something must be computed."""
        if self._analyzer is None:
            args = self.args
            self.task = InfluenceTask(args.seed)
            model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
            if fingerprint_of_tensors(model.state_dict()) != self.run["weights"]:
                raise Refused(f"the weights in {self.folder} are not those that run.json describes; train again")
            prepare = prepare_stock_model if args.stock else eigenbasis.prepare_model
            model = prepare(model, self.task)
            kwargs = {"folder": self.influence, "model": model, "task": self.task, "profile": args.profile}
            kwargs["log_level"] = logging.WARNING
            if args.stock:
                self._analyzer = analysis.FolderAnalyzer(**kwargs)
            else:
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                budget = analysis.affordable_tokens(model, device, args.train_batch_size * self.run["max_length"])
                self._analyzer = analysis.EigenAnalyzer(**kwargs, token_budget=budget)
        return self._analyzer

    def loading(self, **sizes) -> dict:
        """Batch sizes and collation for a kronfluence call; stock pads to the maximum length."""
        width = self.run["max_length"]
        collation = functools.partial(collate, pad_to=width if self.args.stock else None)
        return sizes | {"dataloader_kwargs": DataLoaderKwargs(collate_fn=collation)}

    def plan(self) -> dict:
        """Phase -> number of data partitions."""
        if self.args.data_partitions:
            count = min(self.args.data_partitions, len(self.train))
            return {"factors": count, "pairwise": count, "self": count}
        tokens = int(self.train.lengths.sum())
        device = self.analyzer.state.device
        return analysis.plan_partitions(self.analyzer.model, device, len(self.train), tokens, len(self.queries))

    def phases(self, kind: str, name: str, parts: dict) -> analysis.Phases:
        """The work on "factors" or "scores" of this name, as far as an earlier run got."""
        folder = self.influence / "kronfluence" / f"{kind}_{name}"
        return analysis.Phases(folder, parts, f"unfinished {kind}", self.plan(), self.args.overwrite)

    def fit_factors(self) -> dict:
        """Fits factors unless they are stored and intact; returns phase -> seconds."""
        name, args = self.names.factors, self.args
        target = self.influence / "factors" / name
        replace = args.overwrite and not self._fitted
        record = None if replace else refuse_if_stale(target / "factors.json", self.factor_parts, "factors")
        self._fitted = True
        if record and intact(target, record["files"]):
            return {}
        if record:
            print(f"{target}: factors are damaged and are fitted again", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        phases = self.phases("factors", name, self.factor_parts)
        factor_args = make_factor_arguments(args)
        factor_args.covariance_data_partitions = factor_args.lambda_data_partitions = phases.plan["factors"]
        loading = self.loading(per_device_batch_size=args.train_batch_size)
        analysis.fit_factors(self.analyzer, phases, name, self.train, factor_args, loading)
        return phases.record["seconds"]

    def compute(self, kind: str) -> torch.Tensor:
        """Stored scores of this kind, or new ones."""
        if (scores := self.stored(kind)) is not None:
            return scores
        start, args = time.perf_counter(), self.args
        seconds = self.fit_factors()
        parts = self.score_parts if kind == "pairwise" else self.self_parts
        phases = self.phases("scores", f"{self.names.scores}_{kind}", parts)
        score_args = make_score_arguments(args)
        score_args.data_partitions = phases.plan[kind]
        loading = self.loading(per_device_train_batch_size=args.train_batch_size)
        if kind == "pairwise":
            loading["per_device_query_batch_size"] = self._hold_queries(score_args)
        torch.manual_seed(args.seed)  # low-rank projections
        scores = analysis.compute_scores(
            self.analyzer, phases, kind, f"{self.names.scores}_{kind}", self.names.factors, self.queries, self.train,
            score_args, loading,
        )  # fmt: skip
        seconds |= phases.record["seconds"] | {"all": time.perf_counter() - start}
        self.save(kind, scores, seconds)
        shutil.rmtree(phases.folder)
        return scores

    def _hold_queries(self, score_args: ScoreArguments) -> int:
        """Chooses query batch and passes so that what is held of the queries fits into memory; returns the batch size."""
        batch, count = self.args.query_batch_size, len(self.queries)
        if self.args.stock:
            return batch
        passes = analysis.plan_queries(self.analyzer, self.train, self.queries, batch, score_args, self.args.rotate)
        score_args.query_gradient_accumulation_steps = steps = -(-count // (passes * batch))
        return -(-count // (passes * steps))


def make_factor_arguments(args: argparse.Namespace) -> FactorArguments:
    """kronfluence's arguments. Half precision: per-example gradients and their products are bfloat16.

    Model, covariances and rotations are so in stock only. They cost little, and rounding before a rotation
    spreads noise over directions of small eigenvalue, which the inverse curvature blows up. Most of all in the
    covariances: rounding of sums in float32 turns eigenvectors of close eigenvalues into each other, so that the scores
    of two float32 runs with other batches differ; hence float64 there.
    """
    factor_args = FactorArguments(strategy=args.factor_strategy)
    if args.use_half_precision:
        factor_args.per_sample_gradient_dtype = factor_args.lambda_dtype = torch.bfloat16
    if args.use_half_precision and args.stock:
        factor_args.amp_dtype = torch.bfloat16
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = torch.bfloat16
    if args.covariance_dtype:
        dtype = getattr(torch, args.covariance_dtype)
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = dtype
    return factor_args


def make_score_arguments(args: argparse.Namespace) -> ScoreArguments:
    """kronfluence's arguments; half precision as in `make_factor_arguments`."""
    score_args = ScoreArguments(damping_factor=args.damping_factor, query_gradient_low_rank=args.query_gradient_rank)
    if args.use_half_precision:
        score_args.per_sample_gradient_dtype = score_args.score_dtype = torch.bfloat16
    if args.use_half_precision and args.stock:
        score_args.amp_dtype = score_args.precondition_dtype = torch.bfloat16
    return score_args


def refuse_processes(stock: bool) -> None:
    """kronfluence shares work out on GPUs only, and only along its own path."""
    sizes = [int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    if max(sizes) > 1 and not (stock and torch.cuda.is_available()):
        raise Refused("analyze.py runs in one process (several GPUs: with --stock); start it without a launcher")


def main(argv=None) -> None:
    """Scores what is not stored yet, then prints; with --query_index it only prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    refuse_processes(args.stock)
    if not args.stock:
        eigenbasis.check_version()
    gc.freeze()  # kronfluence collects garbage in every phase; what was imported need not be looked at each time
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    influence = Influence(args)
    if args.query_index is not None:
        scores = influence.stored("pairwise")
        if scores is None:
            raise Refused(f"{influence.names.scores} has not been scored yet; run the same command without --query_index")
        show_query(influence.queries, influence.train, scores, args.query_index, args.top_k)
        return
    with exclusive(influence.influence):
        scores = influence.compute("pairwise")
        print(f"{influence.result}: scores of {scores.shape[1]:,} training rows for {scores.shape[0]:,} queries")
        if args.self_influence:
            show_self_influence(influence.train, influence.compute("self"), args.top_k)
        else:
            show_query(influence.queries, influence.train, scores, 0, args.top_k)
        if args.profile and influence._analyzer is not None:
            print(influence.analyzer.profiler.summary())


if __name__ == "__main__":
    sys.exit(run_script(main))

"""The tables of README.md and lab/README.md, made from the JSON files in results/.

    python -m lab.pages                            # writes every table of both pages again
    python -m lab.pages --profile profile.txt      # first stores what analyze.py --profile printed

A page has `<!-- table NAME -->` where a table begins and `<!-- end -->` where it ends. To add a
table, write a function of a `Reader` that returns Markdown, and enter it in TABLES. Below each
table is a line with the files that it was made from.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from attribution.cli import run_script
from attribution.files import write_bytes, write_json
from attribution.provenance import origin
from attribution.show import tables
from lab import timings
from lab.additive import additive_markdown
from lab.common import RESULTS, ROOT, read_result, with_replay
from lab.members import members_markdown
from lab.predicted import predicted_markdown
from lab.timings import CASES
from lab.wrong_labels import wrong_labels_markdown

PAGES = ("README.md", "lab/README.md")
END = "<!-- end -->"

# JSON files are sorted by name; tables are in the order in which they are read.
RECIPES = {
    "default": "embeddings frozen, 8 epochs (the demo's)",
    "all": "everything trained, 8 epochs",
    "short": "embeddings frozen, 2 epochs",
}
RECIPE_SCORES = {
    "identity": "identity",
    "ekfac": "EKFAC, damping 1e-8",
    "ekfac_damping0.0001": "1e-4",
    "ekfac_damping0.01": "1e-2",
    "tfidf2": "squared TF-IDF",
}
REPLAY = "replay_members8_steps2_share0.5"  # of eight halves
SHORT_LDS = {  # label -> score on the demo, on SST-2, on STS-B
    "replay, eight halves": (REPLAY,) * 3,
    "replay, two halves": ("replay_members2_steps2_share0.5",) * 3,
    "EKFAC, eight halves (SST-2: four)": (
        "ekfac_damping0.0001_members8_steps2_share0.5",
        "ekfac_exact_damping0.0001_members4_steps2_share0.5",
        "ekfac_damping0.0001_members8_share0.5",
    ),
    "EKFAC, one checkpoint": ("ekfac",) * 3,
    "plain gradients, one checkpoint": ("identity",) * 3,
    "word overlap (squared TF-IDF cosine)": ("tfidf2",) * 3,
}
SEARCH_ENDS = {"ran": "ran to its end", "refused": "refused in one sentence"}
ARMS = {
    REPLAY: "replay, eight halves",
    "ekfac": "EKFAC",
    "tfidf": "TF-IDF",
    "random": "random, same class",
}
MEANS = {
    "demo": "ekfac_members5",
    "sst2": "ekfac_damping0.0001_members8_share0.5",
}  # arms of several checkpoints


class Reader:
    """Reads results by name, and keeps which were read: what a table was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def __call__(self, name: str) -> dict:
        """The content of NAME.json. Raises FileNotFoundError where there is no such file."""
        self.names.append(name)
        return read_result(self.folder, name)

    def origin(self) -> str:
        """A line with the files that were read, and the commit that made each ('+': with changes on
        top).
        """
        names = dict.fromkeys(self.names)
        return f"From {', '.join(f'`results/{name}.json`{self._commit(name)}' for name in names)}."

    def _commit(self, name: str) -> str:
        around = self.folder / f"{name}.run.json"
        commit = read_result(self.folder, f"{name}.run" if around.exists() else name).get("commit")
        return f" (commit {commit[:7]}{'+' * commit.endswith('+')})" if commit else ""


Table = Callable[[Reader], str]


# --- studies --------------------------------------------------------------------------------------


def lds_short(read: Reader) -> str:
    """LDS of a few scores on the demo, on SST-2, and of STS-B's outputs."""
    columns = {"demo": "plain", "SST-2": "plain", "STS-B, output": "output"}
    studies = [read(f"replay/lds_{name}") for name in ("demo", "sst2", "stsb")]
    kinds = list(columns.values())
    rows = [[label, *map(lds_cell, studies, names, kinds)] for label, names in SHORT_LDS.items()]
    ceilings = zip(studies, kinds, strict=True)
    rows.append(["noise ceiling", *(f"{one['ceiling'][kind]:.2f}" for one, kind in ceilings)])
    return tables.markdown(["score", *columns], rows)


def lds_cell(result: dict, name: str, kind: str = "plain") -> str:
    """One LDS with its interval; `-` where the study has no such score. kind: plain, balanced or
    output.
    """
    if name not in result["scores"]:
        return "-"
    entry = result["scores"][name][kind]
    return tables.with_interval(entry["lds"], entry["interval"], ".2f")


def recipes(read: Reader) -> str:
    """LDS on the demo for three ways of training it."""
    rows = []
    for name, label in RECIPES.items():
        result = read(f"recipes/{name}/lds_demo")
        ceiling = f"{result['ceiling']['plain']:.2f}"
        rows.append([label, *(lds_cell(result, score) for score in RECIPE_SCORES), ceiling])
    return tables.markdown(["recipe", *RECIPE_SCORES.values(), "noise ceiling"], rows)


def flips_short(read: Reader) -> str:
    """Share of flipped targets of a few arms, on the demo and on SST-2; `-` where the study has no
    such arm.
    """
    studies = {
        "demo": read("counterfactual_demo"),
        "sst2": with_replay(read, "counterfactual_sst2"),
    }
    mean = "EKFAC, mean of five seeds (SST-2: eight halves, damping 1e-4)"
    header, rows = ["rows removed"], [[label] for label in (mean, *ARMS.values())]
    for dataset, result in studies.items():
        for i, count in enumerate(
            result["removals"][1:], start=1
        ):  # the first is 0, where nothing flips
            header.append(f"{CASES[dataset]}, {count} of {result['rows']:,}")
            for row, arm in zip(rows, (MEANS[dataset], *ARMS), strict=True):
                curve = result["curves"].get(arm, {})
                known = [curve[key][i] for key in ("flipped", "flipped_interval") if curve]
                row.append(tables.with_interval(*known, ".2f") if known else "-")
    return tables.markdown(header, rows)


def published_flips(read: Reader) -> str:
    """Share of flipped targets: published for RTE, and ours on SST-2."""
    published = read("published")["rte_flips"]
    ours = with_replay(read, "counterfactual_sst2")
    counts = published["removals"]
    rows = [
        [f"{name}, RTE, BERT-base, published", *(f"{share:.3f}" for share in shares)]
        for name, shares in published["shares"].items()
    ]
    for arm, label in ({MEANS["sst2"]: "EKFAC, mean of eight halves"} | ARMS).items():
        if arm not in ours["curves"]:
            continue
        shares = dict(zip(ours["removals"], ours["curves"][arm]["flipped"], strict=True))
        cells = (f"{shares[count]:.3f}" if count in shares else "-" for count in counts)
        rows.append([f"{label}, SST-2, MiniLM, ours", *cells])
    return tables.markdown(["rows removed", *map(str, counts)], rows)


def published_lds(read: Reader) -> str:
    """LDS published for RTE, and what scores without a model reach on the same ground truth."""
    found = read("published")["rte_lds"]
    rows = [[name, f"{value:.2f}", "published"] for name, value in found["published"].items()]
    for name, value in found["model_free"].items():
        interval = found["intervals"].get(name)
        shown = f"{value:.2f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        rows.append([name, shown, "ours, sees no model"])
    return tables.markdown(["score", "LDS", "from"], rows)


def ceiling(read: Reader) -> str:
    """The noise ceiling and what a perfect score reaches, in simulated studies."""
    found = read("ceiling")["rows"]
    keys = ("reached", "ceiling", "root of the mean")
    rows = [
        [row["queries"], str(row["repeats"]), *(f"{row[key]:.3f}" for key in keys)] for row in found
    ]
    return tables.markdown(["queries", "repeats", "a perfect score reaches", *keys[1:]], rows)


def faults(read: Reader) -> str:
    """Trials of faults by what came of them, and searches of rows and flags by their end."""
    counts: dict[tuple[str, str], list[int]] = {}
    for trial in read("faults")["trials"]:
        what = (
            trial["what"].partition(": ")[2]
            if trial["trial"] == "damaged"
            else trial["what"].rpartition(": ")[2]
        )
        found = counts.setdefault((trial["trial"], what), [0, 0, 0])
        found[[True, False, None].index(trial["passed"])] += 1
    rows = [[name, what, *map(str, found)] for (name, what), found in sorted(counts.items())]
    for name, ends in sorted(read("search")["searches"].items()):
        rows += [[name, what, str(ends[end]), "0", "0"] for end, what in SEARCH_ENDS.items()]
    return tables.markdown(
        ["what happened", "what came of it", "passed", "failed", "skipped"], rows
    )


# --- speed ----------------------------------------------------------------------------------------


def speed_short(read: Reader) -> str:
    """All phases together in every case, and the memory of the first."""
    cases = read("speed")["cases"]
    rows = []
    for name in CASES:
        found, title = (
            cases[name],
            f"{CASES[name]}, {cases[name]['rows']:,} x {cases[name]['queries']}",
        )
        stock, ours = (found["seconds"][arm]["all"] for arm in ("stock", "ours"))
        rows.append([f"{title}: time", f"{stock:.1f} s", f"{ours:.1f} s", f"{stock / ours:.1f}"])
        if name == "sst2":
            rows.append([f"{title}: peak memory", *timings.memory(found["peak"])])
    return tables.markdown(["rows x queries", "stock", "ours", "times faster"], rows)


def gpu(read: Reader) -> str:
    """`timings.gpu_table` of the published figures and the stored estimate."""
    published = read("published")["gpu_seconds"]["seconds"]
    return timings.gpu_table(published, read("gpu_estimate"))


def profile_demo(read: Reader) -> str:
    """The profile of the demo that analyze.py --profile prints, as a block of text."""
    return timings.profile_block(read("profile_demo")["actions"])


# --- the pages ------------------------------------------------------------------------------------


def of_result(name: str, draw: Callable[[dict], str]) -> Table:
    """draw, as a function of a reader instead of the content of results/NAME.json."""
    return lambda read: draw(read(name))


def of_removals(name: str) -> Table:
    """Tables of a counterfactual result and of its replay."""
    return lambda read: tables.counterfactual_markdown(with_replay(read, name))


TABLES: dict[str, Table] = {
    "profile_demo": profile_demo,
    "lds_short": lds_short,
    "flips_short": flips_short,
    "speed_short": speed_short,
    "lds_demo": of_result("lds_demo", tables.lds_markdown),
    "lds_sst2": of_result("lds_sst2", tables.lds_markdown),
    "lds_stsb": of_result("lds_stsb", tables.lds_markdown),
    "members_demo": of_result("members_demo", members_markdown),
    "members_sst2": of_result("members_sst2", members_markdown),
    "additive_demo": of_result("additive_demo", additive_markdown),
    "additive_sst2": of_result("additive_sst2", additive_markdown),
    "wrong_labels_demo": of_result("wrong_labels_demo", wrong_labels_markdown),
    "wrong_labels_sst2": of_result("wrong_labels_sst2", wrong_labels_markdown),
    "wrong_labels_cola": of_result("wrong_labels_cola", wrong_labels_markdown),
    "replay_demo": of_result("replay/lds_demo", tables.lds_markdown),
    "replay_sst2": of_result("replay/lds_sst2", tables.lds_markdown),
    "replay_stsb": of_result("replay/lds_stsb", tables.lds_markdown),
    "replay_similarity": of_result("replay/lds_similarity", tables.lds_markdown),
    "predicted_demo": of_result("predicted_demo", predicted_markdown),
    "published_lds": published_lds,
    "recipes": recipes,
    "ceiling": ceiling,
    "counterfactual_demo": of_result("counterfactual_demo", tables.counterfactual_markdown),
    "counterfactual_sst2": of_removals("counterfactual_sst2"),
    "harmful_sst2": of_removals("counterfactual_sst2_harmful"),
    "published_flips": published_flips,
    "faults": faults,
    "speed_cases": of_result("speed", timings.speed_cases),
    "speed_rounds": of_result("speed", timings.speed_rounds),
    "speed_precision": of_result("speed", timings.speed_precision),
    "speed_growth": of_result("speed", timings.speed_growth),
    "speed_training": of_result("speed", timings.speed_training),
    "speed_rate": of_result("speed", timings.speed_rate),
    "speed_operators": of_result("speed", timings.speed_operators),
    "scale": of_result("scale", timings.scale_table),
    "scale_replay": of_result("scale_replay", timings.scale_table),
    "gpu": gpu,
    "h200_scores": of_result("h200", timings.h200_scores),
    "h200_seconds": of_result("h200", timings.h200_seconds),
    "h200_products": of_result("h200", timings.h200_products),
    "glue_tasks": of_result(
        "glue_tasks", lambda found: tables.markdown(found["header"], found["rows"])
    ),
}


def fill(text: str, results: Path) -> str:
    """The text of a page with every marked table made again from the results folder.

    Raises ValueError for a name that is not in TABLES and for a table without an end.
    """
    before, *parts = re.split(r"(<!-- table .*? -->)", text)
    filled = [before]
    for marker, rest in zip(parts[::2], parts[1::2], strict=True):
        name = marker.split()[2]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"the table {name!r} has no {END}")
        read = Reader(results)
        table = TABLES[name](read)
        filled.append(f"{marker}\n{table}\n\n{read.origin()}\n{END}{after}")
    return "".join(filled)


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profile", type=Path, help="what analyze.py --profile printed for the demo"
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Writes the tables of all pages again."""
    args = parse_args(argv)
    if args.profile:
        record = {"actions": timings.read_profile(args.profile.read_text()), **origin()}
        write_json(RESULTS / "profile_demo.json", record)
    for page in PAGES:
        path = ROOT / page
        write_bytes(path, fill(path.read_text(), RESULTS).encode())
        print(f"wrote {page}")


if __name__ == "__main__":
    sys.exit(run_script(main))

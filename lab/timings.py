"""Tables of timings: against stock kronfluence, on one GPU, and the profile of an analysis.

Each function takes what a benchmark measured, as plain dictionaries, and returns Markdown or a
block of text.
"""

import numpy as np

from attribution.show import tables
from attribution.show.tables import markdown

# JSON files are sorted by name; tables are in the order in which they are read.
PHASES = ("covariance", "eigendecomposition", "lambda", "pairwise", "all")
CASES = {"sst2": "SST-2", "rte": "RTE", "demo": "demo"}
PRECISIONS = ("float32", "tf32", "bfloat16", "bfloat16 and tf32")
STEPS = (  # of a replay those that it has
    "opening",
    "training",
    "covariance",
    "eigendecomposition",
    "lambda",
    "pairwise",
    "kernel of the rows",
    "kernel of the queries",
    "descent",
    "whole process",
    "showing",
)
LONG = 10.0  # seconds from which a step's growth is measured
VARIANTS = ("float32", "bfloat16", "rank 8", "rank 32")


# --- against stock, from results/speed.json -------------------------------------------------------


def speed_case(name: str, found: dict) -> str:
    """Stock against ours in one case of results/speed.json: seconds, memory, agreement."""
    stock, ours = found["seconds"]["stock"], found["seconds"]["ours"]
    rows = [
        [
            phase,
            f"{stock[phase]:.1f} s",
            f"{ours[phase]:.1f} s",
            f"{found['times faster'][phase]:.1f}",
        ]
        for phase in (*PHASES, "whole process", "covariance + lambda")
        if phase in ours
    ]
    rows.append(["peak memory", *memory(found["peak"])])
    for reference, others in found["spearman"].items():
        if "ours" in others:
            rows.append([f"mean Spearman with {reference}", "-", f"{others['ours']:.6f}", "-"])
        for other, value in others.items():
            if other != "ours":
                rows.append([f"mean Spearman of {other}, with stock", f"{value:.6f}", "-", "-"])
    return tables.markdown(
        [f"{name}, {found['rows']:,} x {found['queries']}", "stock", "ours", "times faster"], rows
    )


def memory(peak: dict[str, float]) -> list[str]:
    """Peak memory in bytes of stock and ours -> both in GiB, and their ratio."""
    stock, ours = peak["stock"], peak["ours"]
    return [f"{stock / 2**30:.2f} GiB", f"{ours / 2**30:.2f} GiB", f"{stock / ours:.1f}"]


def speed_cases(speed: dict) -> str:
    """`speed_case` of every case, SST-2 first."""
    return "\n\n".join(
        speed_case(name, speed["cases"][name]) for name in CASES if name in speed["cases"]
    )


def speed_rounds(speed: dict) -> str:
    """Seconds of every single run: how far the runs of an arm are apart."""
    rows = [
        [
            name,
            *(
                ", ".join(f"{seconds:.1f} s" for seconds in case["single"][arm])
                for arm in ("stock", "ours")
            ),
        ]
        for name in CASES
        if (case := speed["cases"].get(name))
    ]
    return tables.markdown(["all phases, each run", "stock", "ours"], rows)


def speed_precision(speed: dict) -> str:
    """Effect of bfloat16 and low rank on SST-2."""
    rows = [
        [
            name,
            *(f"{found['seconds'][phase]:.1f} s" for phase in PHASES),
            f"{found['spearman']:.4f}",
        ]
        for name in VARIANTS
        if (found := speed["precision"].get(name))
    ]
    return tables.markdown(["sst2, ours", *PHASES, "Spearman with float32"], rows)


def speed_growth(speed: dict) -> str:
    """How seconds grow with rows and with queries, and the exponents of power laws through them."""
    parts = []
    for what in ("rows", "queries"):
        found = speed["growth"][what]
        rows = [
            [
                phase,
                *(f"{value:.1f} s" for value in found["seconds"][phase]),
                f"{found['exponents'][phase]:.2f}",
            ]
            for phase in PHASES
        ]
        parts.append(
            tables.markdown([f"sst2, {what}", *map(str, found["sizes"]), "exponent"], rows)
        )
    return "\n\n".join(parts)


def speed_training(speed: dict) -> str:
    """Training rows a second, padded and as train.py does it."""
    found = speed["training"]
    rows = [[name, f"{found['rows per second'][name]:.0f}"] for name in ("padded to 128", "ours")]
    rows.append(["times faster", f"{found['times faster']:.1f}"])
    return tables.markdown(["training, sst2", "rows a second"], rows)


def speed_rate(speed: dict) -> str:
    """How near the pairwise phase comes to the rate of its own matrix products."""
    found = speed["pairwise rate"]
    return (
        f"Pairwise phase, sst2: {found['multiply_adds'] / 1e9:,.0f}e9 multiply-adds in "
        f"{found['seconds']:.1f} s, {found['share']:.0%} of the {found['rate_alone'] / 1e9:.0f}e9 "
        "a second that its matrix products reach alone."
    )


def speed_operators(speed: dict) -> str:
    """Operators of a whole analysis that take at least 1 % of its time."""
    found = [operator for operator in speed["profile"]["operators"] if operator["share"] >= 0.01]
    rows = [
        [operator["name"], f"{operator['calls']:,}", f"{operator['share']:.0%}"]
        for operator in found
    ]
    return tables.markdown(["operator, sst2", "calls", "share of the time"], rows)


def speed_report(speed: dict) -> str:
    """Everything that results/speed.json holds, as the Markdown of results/speed.md."""
    parts = (
        ("cases", speed_cases),
        ("precision", speed_precision),
        ("growth", speed_growth),
        ("training", speed_training),
        ("pairwise rate", speed_rate),
    )
    return "\n\n".join(draw(speed) for key, draw in parts if key in speed)


# --- one GPU, one profile -------------------------------------------------------------------------


def gpu_table(published: dict, estimated: dict) -> str:
    """Published and estimated seconds on an A100: precision -> phase -> seconds, for both."""
    columns = {
        f"published for an A100, {name}": published[name] | {"all": sum(published[name].values())}
        for name in PRECISIONS
        if name in published
    }
    columns |= {
        f"estimate for an A100, {name}": estimated[name] for name in PRECISIONS if name in estimated
    }
    rows = []
    for name, seconds in columns.items():
        agreement = f"{seconds['Spearman']:.4f}" if "Spearman" in seconds else "-"
        rows.append([name, *(f"{seconds[phase]:,.0f} s" for phase in PHASES), agreement])
    return tables.markdown(["SST-2, BERT-base", *PHASES, "Spearman with float32"], rows)


def gpu_measured(found: dict) -> str:
    """Seconds of `lab.gpu` in each precision beside their estimate, and what else was measured."""
    measured = dict(found["measured"])
    rows = []
    for name in [one for one in measured if "covariance" in measured[one]]:
        one = measured.pop(name)
        what = found["estimate"].get(name) if name in PRECISIONS else None
        cells = [
            f"{one[phase]:,.1f} s" + (f" ({what[phase]:,.1f} s)" if what else "")
            for phase in PHASES
        ]
        agreement = f"{one['Spearman']:.4f}" if "Spearman" in one else "-"
        rows.append([name, *cells, f"{one['whole process']:,.0f} s", agreement])
    title = f"{found['device']}, {found['rows']:,} x {found['queries']:,} (estimate)"
    table = tables.markdown([title, *PHASES, "whole process", "Spearman with float32"], rows)
    rest = [f"- {name}: {value}" for name, one in measured.items() for value in [shown(one)] if one]
    return "\n".join([table, "", *rest])


def shown(found: dict) -> str:
    """What one item of `lab.gpu` measured, on a line."""
    cells = [
        f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
        if name not in ("checksum", "end")
    ]
    return ", ".join(cells)


def h200_scores(found: dict) -> str:
    """How far scores on the GPU are from the CPU's, from one checkpoint."""
    rows = [
        [name, f"{one['norm']:.0e}", f"{one['largest']:.0e}", f"{one['spearman']:.6f}"]
        for name, one in sorted(found["scores"].items(), key=lambda item: item[1]["norm"])
    ]
    return tables.markdown(
        ["demo, 400 x 60", "by norm", "of a query's largest score", "mean Spearman"], rows
    )


def h200_seconds(found: dict) -> str:
    """Seconds of one analysis on the GPU, and the estimate for that card."""
    one = found["analysis"]
    title = f"SST-2, BERT-base's shape, TF32, {one['rows']:,} x {one['queries']}"
    arms = (
        ("estimate", "estimate"),
        ("measured", "measured"),
        ("measured, without storing", "computing"),
    )
    rows = [[name, *(f"{one[key][phase]:.1f} s" for phase in PHASES)] for name, key in arms]
    return tables.markdown([title, *PHASES], rows)


def h200_products(found: dict) -> str:
    """Milliseconds of one module's inner products with few and with many rows at a time."""
    rows = []
    for name, times in found["products"]["milliseconds"].items():
        few, many = times["1170"], times["4680"]
        shares = [
            found["products"]["floor"][name][count] / times[count] for count in ("1170", "4680")
        ]
        cells = [
            f"{value:.1f} ms, {share:.0%}" for value, share in zip((few, many), shares, strict=True)
        ]
        rows.append([name, *cells, f"{4 * few / many:.1f}"])
    header = [
        "one module, 872 queries",
        "1,170 rows, of the card's rate",
        "4,680 rows",
        "times faster a row",
    ]
    return tables.markdown(header, rows)


def read_profile(text: str) -> list[dict]:
    """The table that analyze.py --profile prints, as one dictionary a row. Raises ValueError where
    there is none.
    """
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if "|" in line
    ]
    keys = ("action", "mean_seconds", "calls", "total_seconds", "percentage")
    found = [row for row in rows if len(row) == len(keys) and row[0] not in ("Action", "")]
    if not found or found[0][0] != "Total":
        raise ValueError("there is no table of analyze.py --profile in this text")
    values = [
        [row[0], *(None if cell == "-" else float(cell.rstrip(" %")) for cell in row[1:])]
        for row in found
    ]
    return [dict(zip(keys, row, strict=True)) for row in values]


def profile_block(actions: list[dict]) -> str:
    """The actions of `read_profile` that take at least 1 % of the time, as an aligned block of
    text.
    """
    header = ["action", "mean (s)", "calls", "total (s)", "share (%)"]
    rows = []
    for row in (row for row in actions if row["percentage"] >= 1):
        mean = "-" if row["mean_seconds"] is None else f"{row['mean_seconds']:.4f}"
        total, share = f"{row['total_seconds']:.4f}", f"{row['percentage']:.1f}"
        rows.append([row["action"], mean, f"{row['calls']:.0f}", total, share])
    return f"```\n{tables.aligned(header, rows)}\n```"


def exponent(sizes: list[int], values: list[float]) -> str:
    """The exponent of a power law through the values; "-" for fewer than two."""
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:z.2f}" if len(sizes) > 1 else "-"


def scale_table(result: dict) -> str:
    """Seconds and peaks of every step against rows, and the exponents of what takes above LONG
    seconds.
    """
    measured = {int(size): steps for size, steps in result["sizes"].items()}
    sizes = sorted(measured)
    rows = []
    for step in STEPS:
        if step not in measured[sizes[0]]:
            continue
        found = [measured[size][step] for size in sizes]
        long = [
            (size, one["seconds"])
            for size, one in zip(sizes, found, strict=True)
            if one["seconds"] > LONG
        ]
        cells = [f"{one['seconds']:.1f} s, {one['peak'] / 2**30:.2f} GiB" for one in found]
        powers = exponent([size for size, _ in long], [seconds for _, seconds in long])
        rows.append([step, *cells, powers, exponent(sizes, [one["peak"] for one in found])])
    return markdown(["step", *(f"{size:,} rows" for size in sizes), "exponent", "of memory"], rows)

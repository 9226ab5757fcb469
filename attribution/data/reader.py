"""Reader of tables: files or standard input, with rows to train on, validate on or ask about.

    table = read_table([Path("reviews.csv")], ("text",), "stars")   # columns `text` and `label`

All rows of the user go through here, so that a file means the same wherever it is given: a cell of
CSV or TSV is a text; quotation marks enclose cells in CSV and are text in TSV; JSON is one object a
line, or one array of objects; a line ends with a line feed. Refusals name file, row (from 0 on,
without the header) and column.
"""

import csv
import functools
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet

from attribution.files import Refused, printable
from attribution.hub import refuse_pointer

SUFFIXES = ("parquet", "csv", "tsv", "jsonl", "json")
COMPRESSED = ("gz", "bz2", "xz", "zip", "zst")
STANDARD_INPUT = Path("-")


def read_table(
    paths: Sequence[Path], texts: Sequence[str], label: str, unlabelled: bool = False
) -> datasets.Dataset:
    """Text columns of the files' rows, and their label column as `label`.

    texts, label: names of columns. unlabelled: whether the label column may be missing. A text may
    be missing (None); labels are as the files write them. Raises Refused for a file, a row or a
    column that cannot be read.
    """
    parts = [read_file(path, texts, label, unlabelled) for path in paths]
    if len({str(part.features) for part in parts}) > 1:
        raise Refused(f"{paths[0]} and {paths[1]} have columns of other types; make them alike")
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def read_file(
    path: Path, texts: Sequence[str], label: str, unlabelled: bool = False
) -> datasets.Dataset:
    """Rows of one file, see `read_table`; of a file without a suffix, JSON or CSV as it begins."""
    where = "standard input" if path == STANDARD_INPUT else str(path)
    kind = path.suffix.lstrip(".").lower()
    if kind and kind not in SUFFIXES:
        packed = "; unpack it" if kind in COMPRESSED else ""
        raise Refused(f"{where} is no file of the kinds {', '.join(SUFFIXES)}{packed}")
    try:
        refuse_pointer(path)
        if kind == "parquet":
            check_unique(pa.parquet.read_schema(path).names, where)
            table = datasets.Dataset(pa.parquet.read_table(path))
            return choose_columns(table, texts, label, where, unlabelled)
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
    except FileNotFoundError:
        raise Refused(f"there is no file {where}") from None
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"{where} cannot be read ({str(error).splitlines()[0][:200]})") from error
    if not data.strip():
        raise Refused(f"{where} is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(
            f"{where} is not encoded as UTF-8 (at byte {error.start:,}); save it so"
        ) from None
    if kind in ("json", "jsonl") or (not kind and text.lstrip()[:1] in ("{", "[")):
        columns = read_json_rows(text, where)
    else:
        columns = read_cells(text, where, "\t" if kind == "tsv" else ",")
    check_names(columns, texts, label, where, unlabelled)
    found = {name: pa.array(as_texts(columns[name], name, where), pa.string()) for name in texts}
    if label in columns:
        found["label"] = pa.array(as_labels(columns[label], label, where))
    return datasets.Dataset(pa.table(found))


# --- kinds of files -------------------------------------------------------------------------------


def read_cells(text: str, where: str, delimiter: str) -> dict[str, list]:
    """Columns of CSV or TSV. Raises Refused for a row with more or fewer cells than the header."""
    csv.field_size_limit(sys.maxsize)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, strict=True)
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    line = 1
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for other, name in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and other in header[0]:
                raise Refused(
                    f"{where} separates its cells by {name}; save it with commas, with tabs as a "
                    ".tsv file, or as Parquet"
                )
        check_unique(header, where)
        for row in reader:
            if row and len(row) != len(header):
                remedy = "quotation marks go around a cell with commas in it"
                if delimiter == "\t":
                    remedy = "a cell cannot hold a tab"
                raise Refused(
                    f"{place_of(len(rows), where)}, line {line + 1}, has {len(row)} cells, but "
                    f"the header has {len(header)}; {remedy}"
                )
            line = reader.line_num
            if row:  # not a blank line
                rows.append(row)
    except csv.Error as error:
        raise Refused(
            f"{where} cannot be read as CSV from line {line + 1} on ({error}); quote its texts, "
            "double the quotation marks in them, or save it as Parquet"
        ) from error
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    return dict(zip(header, map(list, columns), strict=True))


def read_json_rows(text: str, where: str) -> dict[str, list]:
    """Columns of JSON: an array of objects, or an object a line. A missing key is None."""
    is_array = text.lstrip().startswith("[")
    parts = {where: text}
    if not is_array:
        parts = {f"line {i} of {where}": line for i, line in enumerate(text.split("\n"), 1)}
    rows: list = []
    for place, part in parts.items():
        if not part.strip():
            continue
        try:
            found = json.loads(part, object_pairs_hook=functools.partial(members, place))
        except (ValueError, RecursionError) as error:
            raise Refused(f"{place} cannot be read as JSON ({error})") from None
        rows += found if is_array else [found]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Refused(f"{place_of(number, where)} is no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def members(place: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    """JSON object of these members. Raises Refused if one hides another."""
    check_unique([name for name, _ in pairs], place)
    return dict(pairs)


# --- columns --------------------------------------------------------------------------------------


def check_unique(names: Sequence[str], where: str) -> None:
    """Raises Refused for a column that is there twice."""
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise Refused(f"{where} has the column {printable(twice[0])!r} twice; rename one of them")


def check_names(
    columns, texts: Sequence[str], label: str, where: str, unlabelled: bool = False
) -> None:
    """Raises Refused if a column is missing, or, where labels may be missing, one that seems to
    hold them has another name.
    """
    wanted = [*texts] if unlabelled else [*texts, label]
    for name in wanted:
        if name not in columns:
            known = printable(", ".join(map(str, columns)))[:200] or "none"
            raise Refused(f"{where} has no column {name!r} (it has {known})")
    if label in columns:
        return
    others = [str(name) for name in columns if name not in texts]
    alike = [one for one in others if one.strip().casefold() in ("label", label.casefold())]
    if alike:
        raise Refused(
            f"{where} has a column {alike[0]!r}, but the labels of this run are in {label!r}; "
            "rename the column, or leave it out"
        )
    if others:
        named = printable(", ".join(others))[:200]
        print(f"{where} has no labels in {label!r}; not used: {named}", file=sys.stderr)


def choose_columns(
    table: datasets.Dataset,
    texts: Sequence[str],
    label: str,
    where: str,
    unlabelled: bool = False,
) -> datasets.Dataset:
    """Text columns of a table in Arrow's format, and its label column as `label`.

    Raises Refused if one is missing or twice there.
    """
    check_unique(table.column_names, where)
    check_names(table.column_names, texts, label, where, unlabelled)
    if label not in table.column_names:
        return table.select_columns(list(texts))
    return table.select_columns([*texts, label]).rename_columns({label: "label"})


def as_texts(values: list, name: str, where: str) -> list[str | None]:
    """The texts of a column. Raises Refused for a value that is no text, and for one that is no
    Unicode.
    """
    for row, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, str):
            raise Refused(
                f"{place_of(row, where)} has {described(value)} in the column {name!r}, not a text"
            )
        if not is_unicode(value):
            raise Refused(
                f"{place_of(row, where)} has a text that is no Unicode in the column {name!r}"
            )
    return values


def place_of(row: int, where: str) -> str:
    """Row of a table, as every refusal names it. where: the file or split."""
    return f"row {row} of {where} (from 0 on)"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_labels(values: list, name: str, where: str) -> list:
    """The labels of a column; as strings if they are of several types, or very large.

    Raises Refused for a list or an object, and for what no table can hold.
    """
    for row, value in enumerate(values):
        if isinstance(value, (list, dict)):
            raise Refused(
                f"{place_of(row, where)} has {described(value)} in the column {name!r}, not a label"
            )
        if isinstance(value, str) and not is_unicode(value):
            raise Refused(
                f"{place_of(row, where)} has a label that is no Unicode in the column {name!r}"
            )
    kinds = {type(value) for value in values} - {type(None)}
    huge = kinds == {int} and any(abs(value) >= 2**63 for value in values if value is not None)
    if len(kinds) > 1 or huge:
        return [None if value is None else str(value) for value in values]
    return values


def described(value) -> str:
    """A value of JSON in a few words."""
    if isinstance(value, (list, dict)):
        return "an object" if isinstance(value, dict) else "a list"
    return f"the value {json.dumps(value)}"

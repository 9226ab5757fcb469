"""Every table goes through one reader: the same file gives the same rows wherever it is given, and
what cannot be read is refused by file, row and column.
"""

import io
import json
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attribution.data.custom import CustomData, open_custom
from attribution.data.labels import class_of, is_missing, name_of, number_of
from attribution.data.reader import STANDARD_INPUT, read_table
from attribution.files import Refused

ODD = [
    "plain",
    " blanks ",
    "a\u2028b\x85c",
    'He said "hi".',
    "a, b",
    "NA",
    "null",
    "1",
    "é\N{SNOWMAN}",
]


def as_file(folder: Path, kind: str, rows: list[dict], mark: bytes = b"") -> Path:
    """The rows as a file of this kind, as another program would write it. mark: begins the file."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "csv":
        cells = [["text", "stars"], *([row["text"], row["stars"]] for row in rows)]
        quoted = [",".join('"' + c.replace('"', '""') + '"' for c in line) for line in cells]
        path.write_bytes(mark + "\r\n".join(quoted).encode())
    elif kind == "tsv":
        lines = ["text\tstars", *(f"{row['text']}\t{row['stars']}" for row in rows)]
        path.write_bytes(mark + "\n".join(lines).encode())
    elif kind == "json":
        path.write_bytes(mark + json.dumps(rows, ensure_ascii=False).encode())
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_bytes(mark + "\n".join(lines).encode())
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_text_is_the_same_in_every_kind_of_file(tmp_path, kind):
    rows = [{"text": text, "stars": f"s{i}"} for i, text in enumerate(ODD)]
    table = read_table([as_file(tmp_path, kind, rows)], ("text",), "stars")
    assert table["text"] == ODD and table["label"] == [row["stars"] for row in rows]


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_survives_csv_and_json(tmp_path, texts):
    rows = [{"text": text, "stars": "x"} for text in texts]
    for kind in ("csv", "jsonl", "json"):
        assert read_table([as_file(tmp_path, kind, rows)], ("text",), "stars")["text"] == texts


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_standard_input_is_read_as_its_file_with_a_byte_order_mark_or_without(
    tmp_path, monkeypatch, kind
):
    rows = [{"text": "caf\xe9", "stars": "x"}, {"text": "b", "stars": "y"}]
    for mark in (b"", b"\xef\xbb\xbf"):
        path = as_file(tmp_path, kind, rows, mark)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes()), "ascii"))
        assert read_table([STANDARD_INPUT], ("text",), "stars").to_dict() == {
            "text": ["caf\xe9", "b"],
            "label": ["x", "y"],
        }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,stars\nThe soup was hot, but cold.,1\n", "row 0 .*, line 2, has 3 cells"),
        ("a.csv", "text,stars\ngood,1\nbad\n", "row 1 .*, line 3, has 1 cells.* header has 2"),
        ("a.tsv", "text\tstars\na\tb\tc\n", "row 0 .* has 3 cells, .* cannot hold a tab"),
        ("a.csv", "text;stars\na, b;1\n", "separates its cells by semicolons; save it"),
        ("a.csv", "text\tstars\na\t1\n", "separates its cells by tabs; save it"),
        ("a.csv", "text,text,stars\na,b,1\n", "has the column 'text' twice"),
        ("a.csv", 'text,stars\na,1\n"b,2\nc,3\n', "from line 3 on"),
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", '{"text": "a", "stars": 1, "id": 2}\n{"text": "b"}\n3\n', "row 2 .* no JSON"),
        ("a.csv", "text\na\n", "no column 'stars' .it has text."),
        ("a.jsonl", '{"text": "a", "text": "b", "stars": 1}\n', "line 1 .* column 'text' twice"),
        ("a.jsonl", '{"text": "a", "stars": 1}\n{"text"\n', "line 2 .* cannot be read as JSON"),
        ("a.jsonl", "3\n", "row 0 .* is no JSON object"),
        ("a.json", '[{"text": "a", "stars": 1}, 3]', "row 1 .* is no JSON object"),
        ("a.json", '[{"text": "a"', "cannot be read as JSON"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.jsonl", '{"text": ["a"], "stars": 1}\n', "row 0 .* has a list in the column 'text'"),
        ("a.jsonl", '{"text": {"en": "a"}, "stars": 1}\n', "row 0 .* has an object in"),
        ("a.jsonl", '{"text": 3, "stars": 1}\n', "row 0 .* has the value 3 in"),
        (
            "a.jsonl",
            '{"text": "\\ud83d", "stars": 1}\n',
            "row 0 .* no Unicode in the column 'text'",
        ),
        ("a.jsonl", '{"text": "a", "stars": [1]}\n', "row 0 .* has a list in the column 'stars'"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.csv.gz", "x", "is no file of the kinds .*; unpack it"),
        ("a.txt", "x", "is no file of the kinds .*json$"),
        ("a.parquet", "no parquet", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_by_row_and_column(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=message):
        read_table([tmp_path / name], ("text",), "stars")


def test_a_column_that_seems_to_hold_labels_under_another_name_is_refused(tmp_path, capsys):
    path = tmp_path / "q.csv"
    for name in ("label", "Label", "STARS", " stars"):
        path.write_text(f"text,{name},id\na,1,2\n")
        with pytest.raises(Refused, match=f"'{name}', but the labels of this run are in 'stars'"):
            read_table([path], ("text",), "stars", unlabelled=True)
    path.write_text("text,id\na,2\n")
    assert read_table([path], ("text",), "stars", unlabelled=True).column_names == ["text"]
    assert "has no labels in 'stars'; not used: id" in capsys.readouterr().err


def test_a_files_name_is_a_name(tmp_path):
    for name, label in (("part[1].csv", "wanted"), ("part1.csv", "other"), ("a::b.csv", "colons")):
        rows = "".join(f"text {i},{label}_{i % 2}\n" for i in range(8))
        (tmp_path / name).write_text(f"text,stars\n{rows}")
        path = str(tmp_path / name)
        for validation in (None, path):
            data = CustomData(path, ("text",), "stars", validation_split=validation)
            names = open_custom(data, "rows").task.class_names
            assert names == (f"{label}_0", f"{label}_1"), (name, validation)


def test_labels_mean_the_same_however_they_are_written():
    assert [name_of(value) for value in (1, 1.0, "1", "01", "1.0", " 1")] == ["1"] * 6
    assert [name_of(value) for value in (True, "true", "x1", "1_0")] == [
        "True",
        "true",
        "x1",
        "1_0",
    ]
    assert all(map(is_missing, (None, "", "  ", float("nan")))) and not is_missing("nan")
    assert all(number_of(text) != number_of(text) for text in ("nan", "NA", "inf", "1_0", "", "x"))
    assert [class_of(v, ("1", "2")) for v in ("01", 2.0, "2", "3", 0)] == [0, 1, 1, None, None]
    unnamed = ("LABEL_0", "LABEL_1")  # of transformers
    assert [class_of(v, unnamed) for v in (1, "0", 1.0, "2", "LABEL_1")] == [1, 0, 1, None, 1]
    assert [class_of(v, ("False", "True")) for v in (True, "true", "FALSE")] == [1, 1, 0]
    assert [class_of(v, ("a-b", "a b", "c")) for v in ("a-b", "A B", "C")] == [0, None, 2]


def test_whole_numbers_of_any_size_are_classes_of_their_own(tmp_path):
    large = [2**53, 2**53 + 1, 10**25 + 1]
    for kind in ("csv", "jsonl"):
        rows = [{"text": f"t{i}", "stars": large[i % 3]} for i in range(12)]
        if kind == "csv":
            rows = [{"text": row["text"], "stars": str(row["stars"])} for row in rows]
        path = str(as_file(tmp_path, kind, rows))
        task = open_custom(CustomData(path, ("text",), "stars"), "rows").task
        assert task.class_names == tuple(map(str, large))
    assert number_of(10**400) == float("inf") and name_of(10**400) == str(10**400)


def test_values_too_large_to_be_learned_are_refused_by_row(tmp_path):
    rows = [{"text": f"t{i}", "stars": 1e308 if i == 5 else i + 0.5} for i in range(12)]
    path = str(as_file(tmp_path, "jsonl", rows))
    with pytest.raises(
        Refused, match=r"row 5 of .* has the label '1e\+308', which is not a number"
    ):
        open_custom(CustomData(path, ("text",), "stars"), "rows")

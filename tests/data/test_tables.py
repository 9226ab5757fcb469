"""Rows that cannot give a right answer are refused by split, row and value; everything else is what
it says.
"""

import csv
import math

import datasets
import pytest
import small

from attribution.data.tables import labels_of
from attribution.data.tasks import TASKS
from attribution.files import Refused
from pipeline import get_glue_dataset, get_tokenizer, load_tables


def open_rows(path, task="sst2", split="train"):
    return get_glue_dataset(
        task, split, tables=load_tables(task, str(path)), tokenizer=get_tokenizer(None, "demo")
    )


def written(tmp_path, task="sst2", kind="parquet", split="train", labels=None, **columns) -> str:
    part = small.table(task, "train" if split == "train" else "validation", labels) | columns
    return small.write(tmp_path, task, small.tables(task, **{split: part}), kind)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("sst2", lambda row, c: c),
        ("sst2", lambda row, c: float(c)),
        ("sst2", lambda row, c: bool(c)),
        ("sst2", lambda row, c: str(c)),
        ("sst2", lambda row, c: ("negative", "positive")[c]),
        ("mnli", lambda row, c: ("entailment", "neutral", "contradiction")[c]),
        ("rte", lambda row, c: ("entailment", "not_entailment")[c]),
        ("stsb", lambda row, c: f"{c}.5"),
    ],
)
def test_labels_of_every_sort_are_the_classes_that_they_name(tmp_path, task, labels):
    data = open_rows(written(tmp_path, task, labels=labels), task)
    classes = [row % (3 if task == "mnli" else 2) for row in range(len(data))]
    assert data.labels.tolist() == [c + 0.5 if task == "stsb" else c for c in classes]


def test_names_of_classes_decide_and_not_their_order_in_the_column(tmp_path):
    column = datasets.ClassLabel(names=["positive", "negative"])
    rows = {"sentence": ["good", "bad"], "label": [0, 1]}
    table = datasets.Dataset.from_dict(rows).cast_column("label", column)
    assert labels_of(table, TASKS["sst2"], "train").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [(["Positive", "NEGATIVE "], [1, 0]), (["0", "1"], [0, 1]), (["positive"], [1, 1])],
)
def test_class_names_of_another_case_are_the_tasks_and_digits_are_numbers(names, labels):
    column = datasets.ClassLabel(names=names)
    rows = {"sentence": ["good", "bad"], "label": [0, len(names) - 1]}
    table = datasets.Dataset.from_dict(rows).cast_column("label", column)
    assert labels_of(table, TASKS["sst2"], "train").tolist() == labels


@pytest.mark.parametrize("names", [["neg", "pos"], ["1", "0"], ["positive", "Positive"]])
def test_class_names_that_are_not_the_tasks_are_refused(names):
    rows = {"sentence": ["good", "bad"], "label": [0, 1]}
    table = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=names))
    with pytest.raises(Refused, match=f"train calls its classes {names[0]}, {names[1]}, but"):
        labels_of(table, TASKS["sst2"], "train")


@pytest.mark.parametrize(
    "labels", [lambda _, c: c, lambda _, c: str(c), lambda _, c: ("negative", "positive")[c]]
)
def test_a_class_has_the_tasks_name_however_the_column_writes_it(tmp_path, labels):
    data = open_rows(written(tmp_path, labels=labels))
    assert [data.label_name(row) for row in range(2)] == ["negative", "positive"]


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (
            "sst2",
            lambda row, c: c + (0.5 if row == 3 else 0.0),
            "row 3 of the split 'train' of sst2 .from 0 on. has the label 1.5",
        ),
        ("sst2", lambda row, c: 0.9 if c else 0.2, "row 0 .* label 0.2"),
        ("sst2", lambda row, c: -100 if row == 5 else c, "row 5 .* label -100"),
        (
            "sst2",
            lambda row, c: -1 if row == 5 else c,
            "row 5 .* label -1; .* -1 says that there is none",
        ),
        ("sst2", lambda row, c: -1, "unlabelled: all of its labels are -1"),
        ("sst2", lambda row, c: c + 1, "counted from 1: subtract 1"),
        ("sst2", lambda row, c: None if row == 2 else c, "row 2 .* has no label"),
        (
            "sst2",
            lambda row, c: "good" if row == 4 else "negative",
            "row 4 .* label 'good'.*negative, positive",
        ),
        ("sst2", lambda row, c: math.nan if row == 1 else float(c), "row 1 .* label nan"),
        ("rte", lambda row, c: row % 3, "row 2 .* label 2; labels are whole numbers from 0 to 1"),
        ("stsb", lambda row, c: -1.0, "unlabelled"),
        (
            "stsb",
            lambda row, c: math.nan if row == 4 else 1.0,
            "row 4 .* nan; labels are finite numbers from 0 to 5",
        ),
        ("stsb", lambda row, c: 5.5, "label 5.5"),
        ("stsb", lambda row, c: None if row == 1 else 2.0, "row 1 .* has no label"),
        ("stsb", lambda row, c: math.inf if row == 7 else 2.0, "row 7 .* label inf"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_that_are_none_are_refused_by_row_and_value(tmp_path, task, labels, message, split):
    name = "valid" if split == "validation" else split
    with pytest.raises(Refused, match=message.replace("'train'", f"'{split}'")):
        open_rows(written(tmp_path, task, split=split, labels=labels), task, name)


def test_labels_that_are_lists_are_refused(tmp_path):
    splits = small.tables()
    for columns in splits.values():
        columns["label"] = [[label] for label in columns["label"]]
    with pytest.raises(Refused, match="row 0 .* label .0."):
        open_rows(small.write(tmp_path, "sst2", splits))
    with pytest.raises(Refused, match="row 0 of the split 'train' .* label .0."):
        open_rows(written(tmp_path / "one split only", labels=lambda row, c: [c]))


def test_more_classes_than_the_task_has_are_named(tmp_path):
    label = datasets.ClassLabel(names=["a", "b", "c"])
    data = datasets.Dataset.from_dict(small.table()).cast_column("label", label)
    with pytest.raises(Refused, match="3 classes .a, b, c., not 2"):
        open_rows(small.write(tmp_path, "sst2", small.tables(train=data)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"] * 7 + [None] + ["b"] * 16, "row 7 .* has no text in the column 'sentence'"),
        (list(range(24)), "of type int64, not strings"),
        ([["a"]] * 24, "not strings"),
    ],
)
def test_texts_that_are_none_are_refused(tmp_path, texts, message):
    with pytest.raises(Refused, match=message):
        open_rows(written(tmp_path, sentence=texts))


@pytest.mark.parametrize(
    ("task", "drop", "message"),
    [
        ("mnli", "validation_mismatched", "no split 'validation_mismatched', which mnli needs"),
        ("sst2", "validation", "no split 'validation'"),
    ],
)
def test_a_missing_split_is_named_with_those_that_there_are(tmp_path, task, drop, message):
    splits = {name: columns for name, columns in small.tables(task).items() if name != drop}
    with pytest.raises(Refused, match=f"{message}.*it has train"):
        load_tables(task, small.write(tmp_path, task, splits))


# --- CSV and TSV ---


def test_quotation_marks_and_the_word_null_are_text_in_tsv(tmp_path):
    body = 'sentence\tlabel\n"an opening mark\t0\nNA\t1\n"another\t0\nnull\t1\n'
    data = open_rows(small.write(tmp_path, "sst2", {"train": body, "validation": body}, "tsv"))
    assert data.texts() == [
        '"an opening mark',
        "NA",
        '"another',
        "null",
    ] and data.labels.tolist() == [0, 1, 0, 1]


def test_a_csv_of_quoted_lines_is_read_and_stray_marks_are_refused_by_line(tmp_path):
    good = 'sentence,label\n"two\nlines, and ""marks""",0\nNA,1\nhe said "hi",0\n'
    data = open_rows(
        small.write(tmp_path / "good", "sst2", {"train": good, "validation": good}, "csv")
    )
    assert data.texts() == ['two\nlines, and "marks"', "NA", 'he said "hi"']
    for text in ('"a stray mark,0\nfoo,1\n"another,0\n', '"never closed,0\nx,1\n'):
        bad = f"sentence,label\nfine,1\n{text}"
        with pytest.raises(Refused, match="line 3 on|cannot open"):
            open_rows(
                small.write(tmp_path / "bad", "sst2", {"train": bad, "validation": good}, "csv")
            )


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = small.write(tmp_path, "sst2", small.tables(), "csv")
    body = "sentence,label\n" + "caf\xe9 au lait,1\n" * 24
    (tmp_path / "sst2" / "train.csv").write_bytes(body.encode("latin-1"))
    with pytest.raises(Refused, match="not encoded as UTF-8"):
        open_rows(path)


# --- folders ---


def test_what_opens_without_doubt_is_opened(tmp_path):
    for split, columns in small.tables().items():
        data = datasets.Dataset.from_dict(columns)
        for folder in ("flat", "inner/sst2"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / folder / f"{split}.parquet")
    whole = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(c) for split, c in small.tables().items()}
    )
    whole.save_to_disk(tmp_path / "saved" / "sst2")
    whole.save_to_disk(tmp_path / "saved one")
    expected = open_rows(small.write(tmp_path / "usual", "sst2", small.tables())).fingerprint()
    for folder in ("flat", "inner", "saved", "saved one"):
        assert open_rows(tmp_path / folder).fingerprint() == expected, folder


def test_another_folder_of_the_same_name_and_changed_files_bring_their_own_rows(tmp_path):
    """The datasets library would bring back what it kept of an earlier folder of that name."""
    for place, label in (("a", 0), ("b", 1), ("b", 0)):
        labels = lambda *_, label=label: label  # noqa: E731
        path = small.write(
            tmp_path / place / "data", "sst2", small.tables(train=small.table(labels=labels))
        )
        assert set(open_rows(path).labels.tolist()) == {label}


def test_what_does_not_open_is_refused_with_the_layout_that_is_wanted(tmp_path):
    small.write(tmp_path / "other", "cola", small.tables("cola"))
    with pytest.raises(
        Refused,
        match="no configuration 'sst2' .it has cola.; .*--dataset_name cola, .* sst2/train-0.pa",
    ):
        open_rows(tmp_path / "other")
    small.write(tmp_path / "br[1]", "sst2", small.tables())
    with pytest.raises(Refused, match="takes for a pattern"):
        open_rows(tmp_path / "br[1]")
    path = small.write(tmp_path / "lfs", "sst2", small.tables())
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (tmp_path / "lfs" / "sst2" / "train.parquet").write_text(pointer)
    with pytest.raises(Refused, match="train.parquet is a Git LFS pointer"):
        open_rows(path)


def test_a_max_length_without_room_for_text_is_refused(tmp_path):
    tokenizer = get_tokenizer(None, "demo")
    assert get_glue_dataset("demo", "train", max_length=3, tokenizer=tokenizer).lengths.max() == 3
    for length in (1, 2):
        with pytest.raises(
            Refused, match=f"--max_length {length} leaves no room for text; it takes at least 3"
        ):
            get_glue_dataset("demo", "train", max_length=length, tokenizer=tokenizer)


assert csv.QUOTE_NONE == 3  # what the datasets library passes on to pandas

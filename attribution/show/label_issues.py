"""Labels to look at, and duplicates, as lines for people, as CSV or as JSON.

The table of a task with the text column `sentence` has the columns of `header_of`; CSV and JSON
have all rows, and numbers of rows in them are those of the column `row`; those of validation rows
are what --query_index takes.
"""

import csv
import json
import sys
from dataclasses import asdict

from attribution.data.dataset import GlueDataset
from attribution.data.duplicates import MOST_TEXTS, Duplicate, Relatives, relatives
from attribution.evidence.label_issues import LabelIssue, Ranking, label_issues, rank, turned
from attribution.files import printable
from attribution.influence.analysis import Influence
from attribution.influence.settings import halves_commands
from attribution.show.listing import (
    View,
    columns_and_text,
    cut,
    file_place,
    headline,
    place_in_file,
    row_line,
    widths_of,
    wrapped,
)
from attribution.training.members import members_on_the_way
from attribution.training.run import Run

SURE = 0.8  # probability from which a given label is not doubted
NAMED = 3  # duplicates of a row that are named beside it
TITLES = {
    "replay": "a replay ({}; the default, as it is stored): what the model would say without the "
    "row",
    "loss": "the loss of the model (the default, until a replay is stored)",
    "self_influence": "self-influence ({}), beside what the model says",
}


def show_label_issues(influence: Influence, name: str, view: View) -> None:
    """Prints the training rows by how suspicious their labels are: all of them as CSV or JSON, or
    the first ones and the duplicates. name: of the ranking, or "best", see `rank`.
    """
    with view.progress():
        ranking = rank(influence, name)
        if ranking is None:  # not the main process
            return
        train = influence.train
        queries = influence.queries
        like, of_queries = relatives(train, train), relatives(queries, train)
        issues = label_issues(train, ranking, like, turned(queries, of_queries))
    if view.form == "csv":
        write_csv(issues, train.task.columns)
    elif view.form == "json":
        for issue in issues:
            about = {"ranking": ranking.name, "scores": ranking.scores}
            print(json.dumps(asdict(issue) | about))
    else:
        lines = issue_lines(issues, ranking, train, view.top_k)
        lines += better_lines(influence.run, ranking)
        lines += duplicate_lines(influence, like, of_queries, view.top_k)
        print(*lines, sep="\n")


def write_csv(issues: list[LabelIssue], columns: tuple[str, ...]) -> None:
    """Writes all rows to standard output, with a header. columns: names of the text columns."""
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(header_of(columns))
    for issue in issues:
        writer.writerow(
            [
                issue.row,
                issue.file_row,
                *issue.texts,
                issue.given_label,
                issue.predicted_label,
                issue.label_score,
                issue.is_label_issue,
                " ".join(map(str, issue.neighbours)),
                listed(issue.duplicates),
                listed(issue.validation_duplicates),
            ]
        )


def header_of(columns: tuple[str, ...]) -> list[str]:
    """Columns of the CSV. columns: names of the text columns."""
    of_label = ["given_label", "predicted_label", "label_score", "is_label_issue"]
    of_texts = ["neighbours", "duplicates", "validation_duplicates"]
    return ["row", "file_row", *columns, *of_label, *of_texts]


# --- lines ----------------------------------------------------------------------------------------


def issue_lines(
    issues: list[LabelIssue], ranking: Ranking, train: GlueDataset, top_k: int
) -> list[str]:
    """Lines of the first rows of the ranking."""
    lines = ["", *wrapped(f"labels to look at, by {TITLES[ranking.name].format(ranking.scores)}")]
    if not train.task.regression and all(issue.label_score >= SURE for issue in issues):
        lines += ["no label is doubted by this ranking; its most suspicious rows:"]
    rows = [
        [
            f"{issue.label_score:.3g}" if train.task.regression else f"{issue.label_score:.1%}",
            label_text(issue.given_label),
            f"says {label_text(issue.predicted_label)}",
            f"row {issue.row}{file_place(issue)}",
        ]
        for issue in issues[:top_k]
    ]
    widths = widths_of(rows)
    for cells, issue in zip(rows, issues, strict=False):
        text = cut(" | ".join(issue.texts)) + named(issue.duplicates, train)
        lines += columns_and_text(cells, widths, text)
    if train.task.regression:
        lines.append("numbers: minus the squared error")
    else:
        places = [place for place, issue in enumerate(issues, 1) if issue.is_label_issue]
        count = len(places)
        more = f"; --top_k {places[-1]} shows them" if count and places[-1] > top_k else ""
        lines += wrapped(
            "A percentage is how probable the model finds the given label. Of "
            f"{len(issues):,} rows {count:,} are said to have another{more}."
        )
    if train.wrong is not None:
        top = min(50, len(issues))
        planted = train.wrong[ranking.order[:top]].sum()
        chance = top * train.wrong.mean()
        lines.append(f"{planted} of the top {top} are planted flips; chance gives {chance:.1f}.")
    return lines


def better_lines(run: Run, ranking: Ranking) -> list[str]:
    """Lines about what finds more wrong labels than checkpoints that were trained on all of them;
    none where nobody said how the run was trained.
    """
    commands = halves_commands(run, more="--label_issues") if ranking.seen else []
    if not commands:
        return []
    what = "a replay of a checkpoint" if ranking.name == "replay" else "a model"
    if members_on_the_way(run).member_share < 1:  # they are trained
        del commands[0]
    sentence = (
        f"The ranking comes from {what} that has seen these labels; where it has learned them by "
        "heart, halves of the rows find more:"
    )
    return [*wrapped(sentence), *(f"  {printable(command)}" for command in commands)]


def label_text(label: str | float) -> str:
    """A class, or a regression's number."""
    return f"{label:.2f}" if isinstance(label, float) else printable(label)


def kind_of(duplicate: Duplicate) -> str:
    """Kind of a duplicate in words."""
    kind = "equal" if duplicate.equal else "nearly equal"
    return f"{kind}, {'same' if duplicate.same_label else 'another'} label"


def listed(duplicates: list[Duplicate]) -> str:
    """`7 equal, another label; 9 nearly equal, same label`, empty without duplicates."""
    return "; ".join(f"{one.row} {kind_of(one)}" for one in duplicates)


def numbered(rows: GlueDataset, row: int) -> str:
    """Number of a row among these, and in the user's file if that counts otherwise."""
    return f"{rows.first_number + row}{place_in_file(rows.file_row(row))}"


def named(duplicates: list[Duplicate], train: GlueDataset) -> str:
    """` [row 7: equal, another label; and 3 more]`, those of another label first; empty without
    duplicates.
    """
    first = sorted(duplicates, key=lambda one: one.same_label)[:NAMED]
    some = [f"row {numbered(train, one.row)}: {kind_of(one)}" for one in first]
    if len(duplicates) > NAMED:
        some.append(f"and {len(duplicates) - NAMED} more")
    return f" [{'; '.join(some)}]" if some else ""


def duplicate_lines(
    influence: Influence, like: list[Relatives], of_queries: list[Relatives], top_k: int
) -> list[str]:
    """Lines about equal and nearly equal texts: among the training rows, and of the validation rows
    with them, the first ones named, those of another label with their texts. like, of_queries:
    relatives of the training rows, and of the validation rows.
    """
    train, queries = influence.train, influence.queries
    pairs: dict[str, list[tuple[GlueDataset, int, Duplicate]]] = {}
    for rows, found in ((train, like), (queries, of_queries)):
        subject = "training rows" if rows is train else "validation and training rows"
        for row, relative in enumerate(found):
            for one in relative.duplicates:
                if rows is not train or row < one.row:
                    pairs.setdefault(f"{subject}, {kind_of(one)}", []).append((rows, row, one))
    lines = [
        "",
        "duplicates (equal: up to case and blanks; nearly: three of four words, in any order):",
    ]
    for kind, some in sorted(pairs.items()):
        more = ", ..." if len(some) > top_k else ""
        first = some[:top_k]
        numbers = [
            f"{numbered(rows, row)} and {numbered(train, one.row)}" for rows, row, one in first
        ]
        lines.append(f"  {kind}: {len(some):,}: {', '.join(numbers)}{more}")
        for rows, row, one in first:
            if not one.same_label:
                twin = row_line(train, row) if rows is train else f"    {headline(queries, row)}"
                lines += [twin, row_line(train, one.row)]
    if not pairs:
        lines.append("  none")
    if len(train) > MOST_TEXTS:
        lines.append(f"  of more than {MOST_TEXTS:,} texts only equal ones are looked for")
    return lines

"""The answer to a question about a prediction: what the model said, and the training rows that
pushed it there or the other way.

A score is about the margin of the query's label. An answer turns it, so that its sides are named by
what the rows pushed towards; the score itself keeps its sign. Symbols: Q queries, N training rows,
C classes.
"""

import csv
import dataclasses
import importlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attribution.data.rows import Rows
from attribution.data.tasks import GlueTask
from attribution.data.words import are_alike, words_of
from attribution.files import write_bytes
from attribution.influence.stored import TOP, most_helpful
from attribution.training.arguments import custom_flags

MIN_QUERIES = 20  # from which it can be judged that a row ranks high for many queries
MARK = 0.25  # share of the queries from which a row is marked as high for many queries, at least
BY_CHANCE = 3  # times the share of queries that chance gives a row, which is TOP / N
MAIN = 0.9  # of the other classes' probability from which one of them stands for all
DECIDES = 0.25  # of all absolute scores from which a single row decides; no other has half of it
FORMAT = 2  # version of the answers in JSON
LINKED = 0.35  # of a text's most linked word, from which a word is shown as linked
# Pieces of each text column, which joined are the text, with how much they link row and query: 1
# for the word of the text that does most.
Words = list[list[tuple[str, float]]]


@dataclass(frozen=True)
class Context:
    """Facts that all queries of one set of scores share."""

    train: Rows
    name: str = ""  # of the scores
    num_members: int = 1
    replayed: bool = False  # whether scores are in units of the margin
    likeness: float | None = None  # of replayed and real margins, of rows that training left out
    everywhere: np.ndarray | None = None  # (N,) see `rank_high_everywhere`
    said: np.ndarray | None = None  # (N,) class that the run's model gives each training row
    own: np.ndarray | None = None  # (N,) self-influence: rows are ranked by score / its root
    check: "Check | None" = None  # what checks a prediction by retraining


@dataclass(frozen=True)
class Also:
    """How far other scores of the same query agree."""

    scores: str  # their name
    shared: int  # rows among the strongest of both
    strongest: int  # rows of each that were compared

    def __str__(self) -> str:
        """The same in a sentence."""
        halves = self.scores.startswith("replay_members") and "share" in self.scores
        truer = " In our studies such replays were the truer." * halves
        shared = f"{self.shared} of its {self.strongest} strongest rows are among those of"
        return f"{shared} {self.scores}, too.{truer}"


@dataclass(frozen=True)
class Query:
    """One query with its scores."""

    texts: list[str]
    label: str
    scores: np.ndarray  # (N,)
    number: int | None = None  # of a validation row
    file_row: int | None = None  # its number in the file, if it was drawn from one
    target: str = "label"  # or "predicted", "output" of a regression, "group" of queries
    logits: np.ndarray | None = None  # (C,) of the run's model
    margin: float | None = None  # of the run's model
    label_number: float = np.nan  # class or value; NaN: a regression's output
    members: list[np.ndarray] | None = None  # (N,) of each member
    against: str | None = None  # class that the label stands against; None: all others
    also: Also | None = None  # what other scores of the run say


@dataclass(frozen=True)
class Verdict:
    """What retrains said of a prediction, see `show/verdicts.py`."""

    word: str
    sentence: str


@dataclass(frozen=True)
class Check:
    """What it takes to check one prediction by retraining, and what was checked."""

    command: str  # without the query and its rows
    retrains: int
    time: str | None  # of these, in words; None: not known
    # (texts, label) of a query -> stored verdicts on it by these scores
    verdicts: dict[tuple[str, ...], list[Verdict]] = field(default_factory=dict)


# --- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerRow:
    """A training row in an answer."""

    row: int
    file_row: int | None  # its number, from 0 on, in a file from which validation rows were drawn
    texts: list[str]
    label: str
    score: float  # as stored: above 0 it raises the margin of the query's label
    share: float  # of all absolute scores of the query
    rank: int  # 1: largest absolute score
    agreement: int | None = None  # members that have it among their top
    everywhere: float | None = None  # share of queries that have it among their ten largest
    high: bool = False  # whether those are so many that it tells more about itself
    said: str | None = None  # class that the model gives it, if that is not its label
    alike: bool = False  # whether it has nearly the text of the query
    flipped: bool | None = None  # whether its label is known to be wrong, in the demo
    words: Words | None = None  # how much each links the row to the query, see `with_words`

    @property
    def marks(self) -> list[str]:
        """What a reader should know of the row, in a few words each."""
        known = {
            "flipped on purpose": self.flipped,
            f"the model says {self.said}": self.said and not self.flipped,
            "nearly the same text": self.alike,
            "high for many queries": self.high,
        }
        return [words for words, true in known.items() if true]


@dataclass(frozen=True)
class Side:
    """Rows that pushed one way."""

    towards: str  # a class; of a regression "raised" or "lowered"
    title: str
    direction: str  # of the stored scores: "helpful" or "harmful"
    rows: list[AnswerRow]


@dataclass(frozen=True)
class Answer:
    """What the model said of a query, and the rows behind it."""

    query: int | None  # number of the validation row
    file_row: int | None
    texts: list[str]
    label: str
    target: str  # of the scores: "label", "predicted", "output" of a regression, "group"
    said: str | None
    probability: float | None
    margin: float | None
    scores: str  # their name
    members: int
    unit: str  # of the amounts that are shown: "log-odds", "squared label" or "share"
    conclusion: str
    sides: list[Side]
    check: str | None  # command that checks this prediction
    cost: str | None  # of that command
    words: Words | None = None  # how much each links the query to these rows
    verdicts: list[Verdict] = field(default_factory=list)  # of retrains that were made before
    also: Also | None = None  # what other scores of the run say
    likeness: float | None = None  # of replayed and real margins, see `Context`

    @property
    def wrong(self) -> bool:
        """Whether the model says another class than the label."""
        return self.target == "label" and self.probability is not None and self.said != self.label

    def record(self) -> dict:
        """The answer as plain values, for JSON."""
        return {"format": FORMAT} | dataclasses.asdict(self)

    def amount(self, row: AnswerRow) -> float:
        """Size of the push in the answer's unit."""
        return row.share if self.unit == "share" else abs(row.score)

    def to_csv(self, path: str | Path) -> None:
        """Writes a CSV file with a line for each row."""
        content = io.StringIO(newline="")
        write_csv([self], content)
        write_bytes(Path(path), content.getvalue().encode())

    def __str__(self) -> str:
        # listing.py imports this file, so that it is imported when an answer is printed.
        listing = importlib.import_module("attribution.show.listing")
        return "\n".join(listing.answer_lines(self))


def write_csv(answers: Iterable[Answer], file) -> None:
    """Writes a header, and a line for each row of each answer."""
    lines = [
        {"query": answer.query, "query_text": " | ".join(answer.texts), "towards": side.towards}
        | vars(row)
        | {"texts": " | ".join(row.texts)}
        for answer in answers
        for side in answer.sides
        for row in side.rows
    ]
    names = [one.name for one in dataclasses.fields(AnswerRow) if one.name != "words"]
    writer = csv.DictWriter(file, ["query", "query_text", "towards", *names], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)


def explain(context: Context, query: Query, top_k: int) -> Answer:
    """Answer to a query, with at most top_k rows a side."""
    said, probability = prediction_of(context.train.task, query.logits)
    ranks = np.argsort(np.argsort(-np.abs(query.scores), kind="stable")) + 1
    sides = [
        dataclasses.replace(side, rows=list(rows_of(context, query, ranks, side.direction, top_k)))
        for side in sides_of(context, query, said)
    ]
    regression = context.train.task.regression
    unit = "label" if query.target == "output" else "squared label"
    command = cost = None
    verdicts: list[Verdict] = []
    if context.check is not None and query.target != "group" and sides[0].rows:
        command, cost = check_of(context.check, query, sides[0].direction)
        verdicts = context.check.verdicts.get((*query.texts, query.label), [])
    return Answer(
        query.number,
        query.file_row,
        query.texts,
        query.label,
        query.target,
        said,
        probability,
        query.margin,
        context.name,
        context.num_members,
        (unit if regression else "log-odds") if context.replayed else "share",
        conclusion_of(query.scores, sides),
        sides,
        command,
        cost,
        verdicts=verdicts,
        also=query.also,
        likeness=context.likeness,
    )


def compare(scores: np.ndarray, name: str, other: np.ndarray) -> Also:
    """How many of the rows with the TOP absolute scores (N,) are so by other scores (N,), too."""
    count = min(TOP, len(scores))
    top, of_other = (np.argsort(-np.abs(one), kind="stable")[:count] for one in (scores, other))
    return Also(name, len(np.intersect1d(top, of_other)), count)


def rank_high_everywhere(scores: np.ndarray) -> np.ndarray | None:
    """Share of the queries (N,) that have a row among their TOP absolute scores.

    scores: (Q, N). None for fewer than MIN_QUERIES queries, or hardly more rows than TOP.
    """
    if len(scores) < MIN_QUERIES or scores.shape[1] <= 2 * TOP:
        return None
    top = np.argpartition(-np.abs(scores), TOP, axis=1)[:, :TOP]
    return np.bincount(top.ravel(), minlength=scores.shape[1]) / len(scores)


def prediction_of(task: GlueTask, logits: np.ndarray | None) -> tuple[str | None, float | None]:
    """Prediction and its probability; None where no model was run, or for a regression.

    logits: (C,).
    """
    if logits is None:
        return None, None
    if task.regression:
        return f"{logits[0]:.2f}", None
    place = int(logits.argmax())
    return task.name_of(place), float(softmax(logits)[place])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (C,) of logits (C,)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def sides_of(context: Context, query: Query, said: str | None) -> list[Side]:
    """Both sides, without rows; the one that pushed towards what the model said comes first."""
    task = context.train.task
    if query.target == "group":
        return [
            Side("other predictions", "hurt: pushed away from their labels", "harmful", []),
            Side("their labels", "helped: pushed towards their labels", "helpful", []),
        ]
    if task.regression:
        # Where the output is above the label, what brings it nearer lowers it.
        above = query.logits is not None and query.logits[0] > query.label_number
        ways = ["harmful", "helpful"] if above else ["helpful", "harmful"]
        towards = dict(zip(("raised", "lowered"), ways, strict=True))
        return [Side(name, f"{name} the output", way, []) for name, way in towards.items()]
    other = other_class(context, query)
    sides = []
    for way, name in (("helpful", query.label), ("harmful", other)):
        roles = []
        if name == said or (way == "harmful" and name.endswith(f"most of all {said}")):
            roles.append("what the model said")
        if name == query.label and query.target == "label":
            roles.append("the label")
        more = f" ({', and '.join(roles)})" if roles else ""
        sides.append(Side(name, f"pushed towards {name}{more}", way, []))
    return sides[::-1] if said is not None and said != query.label else sides


def other_class(context: Context, query: Query) -> str:
    """Name of what the label stands against: a class, if it has nearly all of the other classes'
    probability.
    """
    task = context.train.task
    if query.against is not None:
        return query.against
    if task.num_labels == 2:
        return task.name_of(1 - int(query.label_number))
    if query.logits is None:
        return "other classes"
    others = softmax(query.logits)
    others[int(query.label_number)] = 0
    place = int(others.argmax())
    name = task.name_of(place)
    return name if others[place] >= MAIN * others.sum() else f"other classes, most of all {name}"


def rows_of(
    context: Context, query: Query, ranks: np.ndarray, direction: str, top_k: int
) -> Iterator[AnswerRow]:
    """The rows of one side, in the order in which the studies remove rows.

    ranks: (N,), 1 for the largest absolute score.
    """
    scores = query.scores
    total = float(np.abs(scores).sum(dtype=np.float64)) or 1.0
    tops = [most_helpful(each, direction)[:top_k] for each in query.members or []]
    words = words_of(query.texts)
    ranked = scores
    if context.own is not None:  # RelatIF, arXiv:2003.11630, equation 8
        ranked = scores / np.sqrt(np.maximum(context.own, np.finfo(np.float32).tiny))
    for row in most_helpful(ranked, direction)[:top_k].tolist():
        score = float(scores[row])
        if score == 0 or (score > 0) != (direction == "helpful"):
            break  # from here on the rows did not push this way
        yield describe_row(
            context,
            row,
            score=score,
            share=abs(score) / total,
            rank=int(ranks[row]),
            agreement=sum(row in top for top in tops) if tops else None,
            alike=are_alike(words, words_of(context.train.columns_of(row))),
        )


def describe_row(context: Context, row: int, **more) -> AnswerRow:
    """One training row. more: fields that depend on the query."""
    train = context.train
    said = None
    if context.said is not None and context.said[row] != train.labels[row]:
        said = train.task.name_of(int(context.said[row]))
    everywhere = None if context.everywhere is None else float(context.everywhere[row])
    about = {
        "row": row,
        "file_row": train.file_row(row),
        "texts": train.columns_of(row),
        "label": train.label_name(row),
        "flipped": None if train.truth is None else bool(train.truth[row]),
        "everywhere": everywhere,
        "high": (everywhere or 0.0) >= max(MARK, BY_CHANCE * TOP / len(train)),
        "said": said,
    }
    return AnswerRow(**{"score": 0.0, "share": 0.0, "rank": 0} | about | more)


def is_linked(text: str, value: float) -> bool:
    """Whether a piece of a text is a word that is shown as linked."""
    return value >= LINKED and any(character.isalnum() for character in text)


def conclusion_of(scores: np.ndarray, sides: list[Side]) -> str:
    """One sentence: whether a single row decides, by the shares of the absolute scores (N,)."""
    sizes = np.abs(scores.astype(np.float64))
    shares = np.sort(sizes)[::-1] / (sizes.sum() or 1.0)
    if shares[0] >= DECIDES and shares[0] >= 2 * shares[1:2].sum():
        way = "helpful" if scores[sizes.argmax()] > 0 else "harmful"
        (side,) = [side for side in sides if side.direction == way]
        return f"One training row carries {shares[0]:.0%} of the influence. It {side.title}."
    return (
        f"No single row decides: the strongest carries {shares[0]:.1%} of the influence, the "
        f"{min(TOP, len(shares))} strongest {shares[:TOP].sum():.0%}."
    )


# --- checking ------------------------------------------------------------------------------------


def check_of(check: Check, query: Query, direction: str) -> tuple[str, str]:
    """(command that checks the answer, its cost): it removes the fewest rows that carry half of the
    push towards what the model said, at most a tenth of all.

    direction: of the stored scores of these rows.
    """
    scores = query.scores
    pushes = np.sort(np.maximum(scores if direction == "helpful" else -scores, 0))[::-1]
    half = int(np.searchsorted(np.cumsum(pushes), pushes.sum(dtype=np.float64) / 2)) + 1
    removals = max(1, min(half, len(scores) // 10))
    asked = f"--targets {query.number}"
    if query.number is None:
        asked = custom_flags(query.texts, query.label if query.target == "label" else None)
    way = "" if direction == "helpful" else " --direction harmful"
    command = f"{check.command} {asked}{way} --removals {removals}"
    cost = f"{removals} {'row' if removals == 1 else 'rows'}, {check.retrains} retrains"
    if check.time is not None:
        cost += f", {check.time}"
    return command, cost

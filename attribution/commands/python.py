"""Questions to a run from Python.

from attribution import Run

run = Run.open("checkpoints", "demo")
print(run.ask("The soup was cold."))
"""

import contextlib
import sys

from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings, with_members
from attribution.influence.stored import recorded_queries
from attribution.show.answer import Answer
from attribution.show.asking import answers_to_questions, answers_to_rows
from attribution.training import run
from attribution.training.arguments import MAX_QUERIES
from attribution.training.queries import ask
from pipeline import quiet_libraries


class Run(run.Run):
    """A run that answers questions; their scores are stored as those of analyze.py are."""

    def ask(self, *texts: str, label: str | None = None, top_k: int = 5, **settings) -> Answer:
        """Answer to a text (one argument for each text column).

        label: its class by name or number; None for the class that the model predicts. top_k: rows
        of each side. settings: fields of `Settings`, as factor_strategy="replay". Raises Refused
        for texts and labels that the task does not know.
        """
        with contextlib.redirect_stdout(sys.stderr):
            influence = self.influence(**settings)
            questions = ask(self, [[*texts]], [label])
            return answers_to_questions(influence, questions, top_k)[0]

    def ask_rows(self, *numbers: int, top_k: int = 5, **settings) -> list[Answer]:
        """Answers to validation rows, by their numbers, which are scored unless they are.

        top_k, settings: see `ask`. Raises Refused for rows that do not exist.
        """
        with contextlib.redirect_stdout(sys.stderr):
            influence = self.influence(**settings)
            return answers_to_rows(influence, [*numbers], top_k)

    def influence(self, max_queries: int | None = None, **settings) -> Influence:
        """Scores of the run under these settings, stored or still to be computed.

        max_queries: validation rows that are queries; None for as many as were scored before.
        settings: fields of `Settings`.
        """
        quiet_libraries()
        chosen = with_members(Settings(**settings), self)
        chosen.check()
        count = max_queries or recorded_queries(self, chosen.name) or MAX_QUERIES
        train, queries = self.rows(count, chosen.first_query)
        return Influence(self, train, queries, chosen, {"max_queries": count})

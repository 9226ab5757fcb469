"""The page is one file that fetches nothing: texts are data, its one script sorts and filters, and
it says what is not known.

Symbols: Q queries, N training rows.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from running import influence_of, scores_of
from small import Plain

import analyze
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.data.demo import read_rows
from attribution.files import printable
from attribution.show import report
from attribution.show.listing import NOTES
from attribution.show.report import LONGEST, checked_words, lds_words, shown, signed
from attribution.show.scored import ScoredRows
from attribution.training.run import Run
from pipeline import DEMO_MODEL

QUICK = ["--dataset_name", "demo", "--max_queries", "30", "--factor_strategy", "identity"]
EVIL = [
    "<script>alert(1)</script> a fine film",
    "A dull film &amp; <img src=x onerror=alert(1)>",
    "\u202eevil\u202c text \x1b[31m",
    "</script></div></body> \" ' ` {{ 7*7 }} {% raw %}",
    "<b>bold</b> soup",
    "plain words",
]
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """A page's tags with their attributes, its text, scripts and cells; every tag must be closed
    in its order.
    """

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.lines: list[list[str]] = []  # of cells, of each line of a table
        self.badges: list[list[str]] = []  # [class, text]
        self.text = ""
        self.html = html
        self.feed(html)
        self.close()
        assert self.open == []

    def values(self, name: str) -> list[str]:
        """Values of all attributes of this name."""
        return [value for key, value in self.attributes if key == name]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.lines.append([])
        if tag == "td":
            self.lines[-1].append("")
        if tag == "span" and "badge" in str(dict(attrs).get("class")):
            self.badges.append([dict(attrs)["class"], ""])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
            return
        self.text += data
        if "td" in self.open:
            self.lines[-1][-1] += data
        if self.badges and self.open[-1:] == ["span"] and not self.badges[-1][1]:
            self.badges[-1][1] = data

    def table(self) -> list[list[str]]:
        """Lines of the table of all queries, which has the most columns."""
        return [line for line in self.lines if len(line) == max(map(len, self.lines))]


def check_page(html: str, folder: Path) -> Page:
    """The page, of which everything holds that holds for every page."""
    page = Page(html)
    assert not {"link", "img", "iframe", "form", "object", "embed", "base", "audio", "video"} & {
        *page.tags
    }
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        page.tags.count("script"),
    )
    assert policy == (page.values("content")[0], 1)
    assert page.values("http-equiv") == ["Content-Security-Policy"]
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert "http" not in html.replace("http-equiv", "") and "url(" not in html
    assert "@import" not in html and "fetch(" not in script and "eval" not in script
    anchors = page.values("id")
    assert len(anchors) == len({*anchors})
    assert {f"#{anchor}" for anchor in anchors} >= {*page.values("href")}
    assert str(folder) not in html and "/tmp" not in html
    steering = [one for one in html if not one.isprintable() and one != "\n"]
    assert steering == []
    return page


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with stored scores of 30 queries and self-influence; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("report") / "checkpoints")
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), "--self_influence"])
    return folder


def write(folder, *argv: str, arguments=QUICK) -> str:
    """The page of these arguments, as HTML."""
    path = folder / "page.html"
    analyze.main([*arguments, "--checkpoint_dir", str(folder), "--report", str(path), *argv])
    return path.read_text()


def built(folder) -> dict:
    """Everything that the page of the run shows."""
    influence = influence_of(folder, *QUICK)
    return report.build(influence, influence.scores.load("pairwise"), None, 5)


@pytest.fixture(scope="module")
def html(scored, tmp_path_factory) -> str:
    """The page of the run, as nobody asked for queries."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    analyze.main([*QUICK, "--checkpoint_dir", str(scored), "--report", str(path)])
    return path.read_text()


def answers(folder, capsys, *argv: str) -> list[dict]:
    """Answers of analyze.py in JSON."""
    capsys.readouterr()
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), "--format", "json", *argv])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- the whole page -------------------------------------------------------------------------------


def test_the_page_is_one_file_that_fetches_nothing_and_runs_its_own_script_only(html, scored):
    page = check_page(html, scored)
    assert "This page contains training texts" in page.text
    assert page.tags.count("article") == report.WRONG + report.RIGHT
    assert "not checked by retraining" in page.text and "not been measured here" in page.text
    assert {one for one, _ in page.badges} == {"badge"}


def test_marks_that_are_on_the_page_are_explained_and_no_others(html, scored):
    how = Page(html).text.split("How to read it")[1]
    for words, note in NOTES.items():
        marked = re.search(f'<span class="mark">{words}', html.split("How to read it")[0])
        assert (note in how) == bool(marked), words
    assert NOTES["flipped on purpose"] in how  # the demo has such rows


def test_markup_in_texts_classes_and_questions_shows_as_text_and_three_classes_have_a_page(
    tmp_path,
):
    rows = {"text": EVIL * 5, "kind": ["<i>good</i>", "bad&quot;", "so|\u202eso"] * 10}
    Dataset.from_dict(rows).to_parquet(tmp_path / "evil.parquet")
    where = ["--dataset_name", "evil", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(tmp_path / "evil.parquet"), "--text_columns", "text"]
    recipe = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*where, *own, "--label_column", "kind", *recipe])
    plan = ["--dataset_name", "evil", "--factor_strategy", "identity"]
    analyze.main([*plan, "--checkpoint_dir", str(tmp_path), "--self_influence"])
    analyze.main([*plan, "--checkpoint_dir", str(tmp_path), "--query_text", EVIL[3]])
    page = check_page(write(tmp_path, arguments=plan), tmp_path)
    assert not {"b", "i", "img"} & {*page.tags}
    for text in EVIL:
        assert printable(text) in page.text, text
    assert f"\u201c{EVIL[3]}\u201d" in page.text and "a query of your own" in page.text
    for name in ("<i>good</i>", "bad&quot;", "so|\\u202eso"):
        assert f"label {name}" in page.text or f"towards {name}" in page.text
    assert len(page.table()[0]) == 7  # with the column of probabilities
    kinds = {one for one in page.values("value") if one.startswith("label ")}
    assert {*page.values("data-label")} == kinds and len(kinds) == 3


def test_a_regression_has_a_page_without_probabilities_or_wrong_queries(tmp_path, capsys):
    texts = read_rows()["train"]["sentence"][:40]
    labels = np.linspace(0.5, 4.3, 40).tolist()
    Dataset.from_dict({"text": texts, "score": labels}).to_csv(tmp_path / "r.csv")
    where = ["--dataset_name", "r", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(tmp_path / "r.csv"), "--text_columns", "text"]
    recipe = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*where, *own, "--label_column", "score", *recipe])
    plan = ["--dataset_name", "r", "--factor_strategy", "identity"]
    analyze.main([*plan, "--checkpoint_dir", str(tmp_path)])
    capsys.readouterr()
    asked = [*plan, "--checkpoint_dir", str(tmp_path), "--query_text", "A fine soup."]
    analyze.main([*asked, "--format", "json"])
    told = capsys.readouterr()
    page = check_page(write(tmp_path, arguments=plan), tmp_path)
    assert "raised the output" in page.text and "lowered the output" in page.text
    assert len(page.table()) == 4 and {len(line) for line in page.table()} == {6}
    assert "(wrong)" not in page.text and "A fine soup." in page.text
    doubts = Run.open(tmp_path, "r").doubts
    assert doubts and all(one in page.text for one in doubts)  # a model that learned nothing
    assert all(one in told.err for one in doubts) and "cannot be told" not in told.out


def test_872_queries_of_sst2s_length_stay_below_3_mb(scored):
    """Each text as long as the table shows any."""
    page = built(scored)
    texts = ['<&" a long review, of which there are many ' * 6] * 872
    labels = np.arange(872) % 2
    task = influence_of(scored, *QUICK).run.task
    logits = np.random.default_rng(0).normal(size=(872, 2))
    rows = Plain(task, texts, labels)
    many = ScoredRows(None, None, [], rows, rows, logits, logits[:, 0], None, None)
    scores = np.random.default_rng(1).normal(size=(872, 120))
    page["table"] = [report.query_line(many, place, scores[place], []) for place in range(872)]
    html = report.render(page)
    assert len(html.encode()) < 3e6 and len(check_page(html, scored).table()) == 872


def test_a_report_without_scores_makes_them(run_copy):
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy), "--max_queries", "3"]
    where += ["--factor_strategy", "identity", "--report"]
    analyze.main(where)
    html = (run_copy / "demo/influence/scores/identity/report.html").read_text()
    assert len(Page(html).table()) == 3
    assert run_script(analyze.main, [*where, "--query_text", "x"]) == 2


# --- queries --------------------------------------------------------------------------------------


def test_the_table_has_every_query_with_what_the_model_said(html, scored, capsys):
    page = Page(html)
    found = answers(scored, capsys, "--query_index", *map(str, range(30)))
    scores = scores_of(scored, "identity").double().abs()
    assert len(page.table()) == 30
    for line, answer, sizes in zip(page.table(), found, scores, strict=True):
        wrong = " (wrong)" * (answer["said"] != answer["label"])
        assert line == [
            str(answer["query"]),
            answer["texts"][0],
            answer["label"],
            answer["said"] + wrong,
            f"{100 * answer['probability']:.0f} %",
            f"{100 * sizes.max() / sizes.sum():.1f} %",
            "",
        ]


def test_the_most_confidently_wrong_queries_are_shown_and_right_ones_that_the_seed_draws(
    html, scored, capsys
):
    found = answers(scored, capsys, "--query_index", *map(str, range(30)))
    wrong = [one for one in found if one["said"] != one["label"]]
    wrong.sort(key=lambda one: one["margin"])
    cards = [int(one.removeprefix("query-")) for one in Page(html).values("id") if "query-" in one]
    assert cards[:5] == [one["query"] for one in wrong][:5]
    right = {one["query"] for one in found} - {one["query"] for one in wrong}
    assert {*cards[5:]} <= right and len({*cards}) == 10


def test_a_card_shows_both_sides_of_its_answer(scored, capsys):
    scored_page = Page(write(scored, "--query_index", "4", "2", "4", "--top_k", "3"))
    assert [one for one in scored_page.values("id") if "query-" in one] == ["query-4", "query-2"]
    for answer in answers(scored, capsys, "--query_index", "4", "2", "--top_k", "3"):
        assert answer["conclusion"] in scored_page.text
        assert f"{100 * answer['probability']:.0f} %" in scored_page.text
        assert answer["cost"] in scored_page.text
        for side in answer["sides"]:
            assert side["title"] in scored_page.text
            for row in side["rows"]:
                assert f"#row-{row['row']}" in scored_page.values("href")
                assert f"{100 * row['share']:.1f} %" in scored_page.text


def test_bars_have_one_scale_on_the_whole_page(html):
    widths = [float(one[6:-1]) for one in Page(html).values("style")]
    assert len(widths) == 100 and max(widths) == 100 and min(widths) >= 0


def test_rows_say_which_queries_they_touch(html, scored):
    sizes = scores_of(scored, "identity").double().abs().numpy()
    top = np.argsort(-sizes, axis=1)[:, :10]
    rows = [int(one[4:]) for one in Page(html).values("id") if one.startswith("row-")]
    assert rows == sorted(rows) and len(rows) > 20
    for row in rows:
        (item,) = re.findall(rf'<li class="row wide" id="row-{row}">.*?</li>', html, re.DOTALL)
        touched = np.flatnonzero((top == row).any(1)).tolist()
        count = f"{len(touched) or 'no validation'} {'query' if len(touched) == 1 else 'queries'}"
        assert f"<summary>{count}</summary>" in item
        named = re.findall(r'<p class="small">(?:<a href="#query-\d+">)?(\d+)', item)
        assert [*map(int, named)] == touched[: report.TOUCHED]
        assert (f"and {len(touched) - report.TOUCHED} more" in item) == (len(touched) > 12)


def test_rows_to_look_at_begin_with_the_least_probable_labels(html, scored, capsys):
    issues = ["--label_issues", "loss", "--format", "json", "--checkpoint_dir", str(scored)]
    capsys.readouterr()
    analyze.main(["--dataset_name", "demo", *issues])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = [one["row"] for one in found[: report.SUSPECTS] if one["is_label_issue"]]
    section = html[html.index("Labels that may be wrong") :]
    section = section[: section.index("</ol>")]
    assert [*map(int, re.findall(r"#row-(\d+)", section))] == wanted != []
    assert f"the model says {found[0]['predicted_label']}" in section


def test_own_queries_and_verdicts_are_shown_and_forgotten(copied):
    secret = ["--query_text", "Nobody must know this soup."]
    where = ["--checkpoint_dir", str(copied)]
    analyze.main([*QUICK, *where, *secret])
    plan = ["--dataset_name", "demo", *where, "--max_queries", "30", "--strategies", "identity"]
    plan += ["--removals", "5", "10", "--num_retrain_seeds", "2", "--jobs_per_device", "1"]
    run_counterfactual.main([*plan, *secret])
    page = check_page(write(copied), copied)
    assert "Nobody must know this soup." in page.text and "own-10" in page.values("id")
    (own,) = [words for _, words in page.badges if words.startswith("a hint: ")]
    assert f"Checked by retraining: {own}" in page.text
    assert page.tags.count("svg") == 1 and page.tags.count("circle") == 4  # two arms, two removals
    assert "of 1 checked predictions confirmed" in page.badges[0][1]
    page = check_page(write(copied, "--query_index", "2", "4"), copied)
    assert "Nobody must know" not in page.text and page.tags.count("article") == 2
    analyze.main(["--dataset_name", "demo", *where, "--forget_queries"])
    assert "Nobody must know" not in check_page(write(copied), copied).text


# --- verdicts -------------------------------------------------------------------------------------


def verdict(word: str, **more) -> dict:
    """A verdict on query 3 that has this word."""
    level = {
        "removed": 5,
        "change": -1.0,
        "interval": [-1.5, -0.5],
        "predicted": [-2.0, [-2.2, -1.8]],
        "right": 0.4,
        "outcome": "stays right",
        "word": word,
        "seeds": 9 if word == "cannot tell" else None,
    }
    random = level | {"change": 0.25, "interval": [-0.5, 1.0], "predicted": None}
    return {
        "texts": ["a text"],
        "label": "positive",
        "target": "label",
        "query": 3,
        "score": "identity",
        "direction": "helpful",
        "regression": False,
        "seeds": [*range(5)],
        "right": [1.0] * 5,
        "arms": {"identity": [level], "random, same classes": [random]},
    } | more


@pytest.mark.parametrize(
    ("found", "colour", "words"),
    [
        (verdict("confirmed"), "badge good", "confirmed"),
        (verdict("not confirmed"), "badge bad", "not confirmed"),
        (
            verdict("not confirmed", direction="harmful"),
            "badge bad",
            "not confirmed, the other way round",
        ),
        (verdict("cannot tell"), "badge", "cannot tell"),
        (verdict("confirmed", seeds=[0, 1]), "badge good", "a hint: confirmed"),
    ],
)
def test_the_badge_of_a_card_is_the_word_of_its_verdict_in_its_colour(scored, found, colour, words):
    page = built(scored)
    answer = replace(page["cards"][0]["answer"], texts=["a text"], label="positive")
    page["cards"] = [report.card(answer, [found, verdict("confirmed", label="negative")])]
    shown_page = Page(report.render(page))
    assert [colour, words] == shown_page.badges[1]
    assert f"Checked by retraining: {words}" in shown_page.text
    pushed = "towards" if found["direction"] == "helpful" else "away from"
    assert (
        f"Without the 5 rows that, by the scores, pushed most {pushed} positive" in shown_page.text
    )
    assert "a query of your own" not in shown_page.text
    assert "Hollow: predicted. Grey: random rows. Predicted by a replay." in shown_page.text
    assert answer.check and "Check it (" not in shown_page.text


def test_a_conclusion_and_a_title_that_name_an_evil_class_show_as_text(scored):
    page = built(scored)
    answer = page["cards"][0]["answer"]
    side = replace(answer.sides[0], title=f"pushed towards {EVIL[2]}{EVIL[0]}")
    answer = replace(answer, conclusion=f"One row: {side.title}.", sides=[side])
    page["cards"] = [report.card(answer, [])]
    found = report.render(page)
    assert "\u202e" not in found and "\x1b" not in found
    assert Page(found).text.count(f"{printable(EVIL[2])}{EVIL[0]}") == 2


def test_the_plot_of_a_verdict_is_to_scale_and_holds_zero():
    plot = report.plot_of(verdict("confirmed"))
    ours, random = plot["lines"]
    assert (ours["name"], random["name"]) == ("identity, 5", "random, 5")
    assert (ours["random"], random["random"]) == (False, True)
    places = [ours["predicted"], *ours["ends"], ours["dot"], plot["zero"], *random["ends"]]
    values = [-2.0, -1.5, -0.5, -1.0, 0.0, -0.5, 1.0]
    assert places == pytest.approx(np.interp(values, [-2, 1], [4, 96]), abs=0.01)
    assert random["predicted"] is None and random["dot"] > plot["zero"]


def test_retrains_that_diverged_have_no_dot_and_leave_the_plot_its_scale():
    found = verdict("cannot tell")
    found["arms"]["identity"][0] |= {"change": float("nan"), "interval": None}
    plot = report.plot_of(found)
    assert [line["name"] for line in plot["lines"]] == ["random, 5"]
    single = verdict("cannot tell")
    single["arms"]["identity"][0] |= {"interval": None}
    line = report.plot_of(single)["lines"][0]
    assert line["ends"] == [line["dot"]] * 2


def test_what_was_checked_is_counted_by_its_word():
    stored = [verdict(word) for word in ("confirmed", "confirmed", "not confirmed", "cannot tell")]
    assert checked_words(None, stored) == (True, "2 of 4 checked predictions confirmed")
    assert checked_words(None, []) == (False, "")
    known = {"scores": 0.41, "ceiling": None, "interval": [0.3, 0.5]}
    assert checked_words(known, []) == (True, "LDS 0.41")
    assert checked_words(known | {"interval": [-0.1, 0.9]}, []) == (False, "LDS 0.41")
    assert checked_words(None, stored[2:]) == (False, "0 of 2 checked predictions confirmed")


# --- words ----------------------------------------------------------------------------------------


def test_texts_are_one_line_bounded_and_numbers_have_a_true_minus():
    assert shown(["a\nb", "c"]) == "a\\nb | c" and len(shown(["x" * 9999])) == LONGEST + 4
    assert signed(-0.5) == "\N{MINUS SIGN}0.5" and signed(1234.5) == "+1.23e+03"


@pytest.mark.parametrize(
    ("difference", "says"),
    [([0.1, 0.3], "is more than"), ([-0.3, -0.1], "is less than"), ([-0.1, 0.2], "cannot be told")],
)
def test_what_retraining_says_of_the_scores_is_claimed_as_far_as_intervals_go(difference, says):
    found = {
        "masks": 9,
        "repeats": 2,
        "ceiling": 0.5,
        "baseline": 0.2,
        "scores": 0.4,
        "interval": [0.3, 0.5],
    }
    words = lds_words(
        found | {"difference": difference, "share": 0.8, "share_interval": [0.6, 1.0]}, "command"
    )
    assert (
        says in words
        and "0.40 [0.30, 0.50]" in words
        and "80 % [60, 100] of what a perfect score could" in words
    )
    unknown = found | {"difference": difference}
    assert "not known well enough" in lds_words(unknown, "command")
    assert lds_words(None, "python command").endswith("measure it with: python command")


# --- in a browser ---------------------------------------------------------------------------------


def dumped(html: str, folder: Path, width: int = 800) -> str:
    """The page as headless Chromium has it once its scripts have run. width: of the window."""
    path = folder / "shown.html"
    path.write_text(html)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000"]
    command.append(f"--window-size={width},900")
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def with_script(html: str, script: str) -> str:
    """The page with a second script that its policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    return html.replace("</body>", f"<script>{script}</script></body>")


def seen(html: str, folder: Path, steps: str, width: int = 800) -> dict:
    """What a script saw on the page: `steps` is JavaScript that fills the object `seen`."""
    helpers = """
const seen = {};
const lines = () => [...document.querySelectorAll("#all tbody tr")].filter((one) => !one.hidden);
const column = (place) => lines().map((one) => one.cells[place].textContent.trim());
const click = (place) => document.querySelectorAll("#all th button")[place].click();
const state = (place) => document.querySelectorAll("#all th")[place].getAttribute("aria-sort");
const enter = (id, value, event) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event(event));
};
const count = () => document.getElementById("count").textContent;
"""
    end = '\ndocument.documentElement.setAttribute("data-seen", JSON.stringify(seen));\n'
    page = Page(dumped(with_script(html, helpers + steps + end), folder, width))
    (found,) = page.values("data-seen")
    return json.loads(found)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")


@needs_chromium
def test_the_script_shows_its_tools_and_counts_the_queries(html, tmp_path):
    assert '<div class="tools" id="tools" hidden>' in html
    shown_html = dumped(html, tmp_path)
    assert '<div class="tools" id="tools">' in shown_html
    assert ">30 of 30 queries</span>" in shown_html


@needs_chromium
def test_a_page_whose_script_was_changed_runs_none_of_it(html, tmp_path):
    changed = html.replace("hidden = false;", "hidden = false; document.title = 'run';")
    shown_html = dumped(changed, tmp_path)
    assert "<title>run" not in shown_html and 'id="tools" hidden' in shown_html


@needs_chromium
def test_a_header_sorts_up_and_then_down_by_number_or_by_word(html, tmp_path):
    steps = """
for (const place of [0, 1, 4, 5]) {
  click(place);
  const up = [column(place), state(place)];
  click(place);
  seen[place] = [...up, column(place), state(place)];
}
seen.others = [0, 1, 4].map(state);
"""
    found = seen(html, tmp_path, steps)
    lines = Page(html).table()
    for place in ("0", "1", "4", "5"):
        cells = [line[int(place)] for line in lines]

        def key(cell, place=place):
            return cell if place == "1" else float(cell.removesuffix(" %"))

        up, ascending, down, descending = found[place]
        assert (ascending, descending) == ("ascending", "descending")
        assert [*map(key, up)] == sorted(map(key, cells)) and sorted(up) == sorted(cells)
        assert [*map(key, down)] == sorted(map(key, cells), reverse=True)
    assert found["others"] == [None, None, None]  # one column is sorted at a time


@needs_chromium
def test_the_search_and_the_list_of_kinds_leave_the_rows_that_fit(html, tmp_path):
    steps = """
enter("search", "THE", "input");
seen.word = [column(0), count()];
enter("kind", "wrong", "change");
seen.both = [column(0), count()];
enter("search", "", "input");
seen.wrong = [column(0), count()];
enter("kind", "label negative", "change");
seen.label = [column(0), count()];
enter("search", "no such words", "input");
seen.none = [column(0), count()];
enter("search", "", "input");
enter("kind", "", "change");
seen.all = [column(0), count()];
"""
    found = seen(html, tmp_path, steps)
    lines = Page(html).table()

    def numbers(fits) -> list:
        fitting = [line[0] for line in lines if fits(line)]
        return [fitting, f"{len(fitting)} of 30 queries"]

    def word(line) -> bool:
        return "the" in "".join(line).lower()

    def wrong(line) -> bool:
        return "(wrong)" in line[3]

    assert found["word"] == numbers(word) and 0 < len(found["word"][0]) < 30
    assert found["both"] == numbers(lambda line: word(line) and wrong(line))
    assert found["wrong"] == numbers(wrong) and 0 < len(found["wrong"][0]) < 30
    assert found["label"] == numbers(lambda line: line[2] == "negative")
    assert found["none"] == numbers(lambda line: False) and found["all"] == numbers(bool)


@needs_chromium
def test_all_columns_of_the_queries_fit_a_phone_and_rows_that_do_not_fit_a_search_are_gone(
    html, tmp_path
):
    steps = """
const box = document.getElementById("all").parentElement;
const named = (place) => getComputedStyle(lines()[0].cells[place], "::before").content;
seen.width = [window.innerWidth, box.scrollWidth, box.clientWidth];
seen.names = [named(2), named(3), named(5)];
enter("search", "no such words", "input");
seen.left = box.querySelector("tbody").getBoundingClientRect().height;
"""
    found = seen(html, tmp_path, steps, width=390)
    window, needed, there = found["width"]
    assert needed <= there < window <= 500
    assert found["names"] == ['"label "', '"said "', '"top row "'] and found["left"] == 0

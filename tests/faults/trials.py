"""What goes wrong, and what must come of it.

Each trial begins from a copy of what the chain had left before a step (or after it), lets something
happen, and starts the same command again. It passes where the end is the reference's, bit for bit,
or where the script refused in one sentence and used nothing that was damaged.
"""

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from faults.chain import STEPS, Running, Step, contents, run


@dataclass(frozen=True)
class Reference:
    """The chain, run once without faults."""

    folder: Path
    seconds: list[float]  # of each step

    def state(self, number: int) -> Path:
        """Folder as it was before the step of this number, or, for the next number, at the end."""
        return self.folder / f"state{number}"


@dataclass(frozen=True)
class Outcome:
    """How a trial went. passed: None where it could not be arranged."""

    passed: bool | None
    what: str
    detail: str = ""


def make_reference(folder: Path, work: Path) -> Reference:
    """Runs the chain in `work`, where trials run too: some files name their place.

    Raises RuntimeError where a step fails without any fault.
    """
    seconds = []
    (work / "checkpoints").mkdir(parents=True)
    folder.mkdir()
    for number, step in enumerate(STEPS):
        shutil.copytree(work, folder / f"state{number}")
        start = time.perf_counter()
        status, text = run(step, work)
        if status:
            raise RuntimeError(f"{step.name} ended with {status}: {text[-2000:]}")
        seconds.append(time.perf_counter() - start)
    shutil.copytree(work, folder / f"state{len(STEPS)}")
    shutil.rmtree(work)
    return Reference(folder, seconds)


class Trial:
    """One trial in `folder`."""

    def __init__(self, reference: Reference, folder: Path, draws: random.Random) -> None:
        self.reference, self.draws, self.folder = reference, draws, folder

    def begin_from(self, number: int) -> Step:
        """Copies what lay there before a step, and returns the step."""
        shutil.copytree(self.reference.state(number), self.folder)
        return STEPS[number]

    def finish(self, number: int, what: str, prepare=None) -> Outcome:
        """Runs the step again to its end and compares with the reference."""
        status, text = run(STEPS[number], self.folder, prepare)
        if status:
            return Outcome(False, what, f"the same command ended with {status}: {text[-500:]}")
        return self.compare(number + 1, what)

    def compare(self, number: int, what: str, but: tuple[str, ...] = ()) -> Outcome:
        """Whether the folder equals the reference. but: files that may differ."""
        expected, found = contents(self.reference.state(number)), contents(self.folder)
        names = [name for name in expected.keys() | found.keys() if name not in but]
        if different := sorted(name for name in names if expected.get(name) != found.get(name)):
            return Outcome(False, what, f"differs: {', '.join(different[:5])}")
        return Outcome(True, what)


# --- killed, interrupted, twice at once -----------------------------------------------------------


def killed(trial: Trial) -> Outcome:
    """kill -9 at a random moment, up to three times, then the same command."""
    number = trial.draws.randrange(len(STEPS))
    step = trial.begin_from(number)
    for _ in range(trial.draws.randint(1, 3)):
        running = Running(step, trial.folder)
        time.sleep(trial.draws.uniform(0, trial.reference.seconds[number]))
        running.kill()
    return trial.finish(number, f"{step.name}: ends as without the kill")


def interrupted(trial: Trial) -> Outcome:
    """SIGINT or SIGTERM at a random moment: ends within seconds, and the same command goes on."""
    number, sign = (
        trial.draws.randrange(len(STEPS)),
        trial.draws.choice((signal.SIGINT, signal.SIGTERM)),
    )
    step = trial.begin_from(number)
    running = Running(step, trial.folder)
    time.sleep(trial.draws.uniform(0.05, trial.reference.seconds[number]))
    if running.process.is_alive():
        os.kill(running.process.pid or 0, sign)
    start = time.monotonic()
    (status, text), took = running.end(20), time.monotonic() - start
    if status not in (0, 130, -sign) or took > 5:
        return Outcome(
            False, step.name, f"{sign.name}: status {status} after {took:.1f} s: {text[-300:]}"
        )
    return trial.finish(number, f"{step.name}: ends within seconds, then as without it")


def twice(trial: Trial) -> Outcome:
    """The same command twice at once: one refuses or waits, and the end is that of one."""
    number = trial.draws.randrange(len(STEPS))
    step = trial.begin_from(number)
    first = Running(step, trial.folder)
    time.sleep(trial.draws.uniform(0, trial.reference.seconds[number] / 2))
    second = Running(step, trial.folder)
    ended = [first.end(), second.end()]
    statuses = [status for status, _ in ended]
    if not set(statuses) <= {0, 2} or 0 not in statuses:
        return Outcome(
            False, step.name, f"statuses {statuses}: {' / '.join(text[-250:] for _, text in ended)}"
        )
    return trial.finish(number, f"{step.name}: one works, the other refuses or reads")


def different_at_once(trial: Trial) -> Outcome:
    """Two commands that share factors: one fits them while the other waits."""
    step = trial.begin_from(1)
    other = Step(
        "other damping",
        "analyze",
        [*step.arguments[:2], "--damping_factor", "1e-3", *step.arguments[4:]],
    )
    first = Running(step, trial.folder)
    time.sleep(trial.draws.uniform(0, trial.reference.seconds[1] / 2))
    second = Running(other, trial.folder)
    ended = [first.end(), second.end()]
    if any(status for status, _ in ended):
        return Outcome(False, "shared factors", " / ".join(text[-250:] for _, text in ended))
    shutil.rmtree(trial.folder / "checkpoints/demo/influence/scores/ekfac_damping0.001")
    return trial.compare(2, "shared factors: fitted once, both score")


# --- damaged files --------------------------------------------------------------------------------

# Name of a kind -> (pattern below the folder, number of the step that reads it; run from the end of
# the chain).
KINDS: dict[str, tuple[str, int]] = {
    "weights": ("checkpoints/demo/model.safetensors", 2),
    "weights on the way": ("checkpoints/demo/steps/*/model.safetensors", 0),
    "a member's weights": ("checkpoints/demo/members/*/model.safetensors", 5),
    "tokenizer": ("checkpoints/demo/tokenizer.json", 2),
    "run.json": ("checkpoints/demo/run.json", 2),
    "factors": ("checkpoints/demo/influence/factors/*/*.safetensors", 1),
    "record of factors": ("checkpoints/demo/influence/factors/*/factors.json", 1),
    "scores": (
        "checkpoints/demo/influence/scores/ekfac_damping0.0001/pairwise_scores.safetensors",
        1,
    ),
    "record of scores": (
        "checkpoints/demo/influence/scores/ekfac_damping0.0001/pairwise_scores.json",
        1,
    ),
    "self-influence": ("checkpoints/demo/influence/scores/ekfac_damping0.0001/self_scores.*", 2),
    "own query's scores": ("checkpoints/demo/influence/scores/*queries-*/pairwise_scores.*", 3),
    "retrain": ("checkpoints/demo/retraining/*/*/*.safetensors", 6),
    "record of retrains": ("checkpoints/demo/retraining/*/recipe.json", 6),
    "report": ("checkpoints/demo/influence/scores/*/report.html", 8),
    "result": ("results/*.json", 7),
}


def damage(path: Path, draws: random.Random) -> str:
    """Flips a bit of the file, or cuts it short; says which."""
    content = bytearray(path.read_bytes())
    if draws.random() < 0.3:
        path.write_bytes(content[: draws.randrange(len(content))])
        return "cut short"
    place = draws.randrange(len(content))
    content[place] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
    return f"a bit of byte {place} flipped"


def damaged(trial: Trial) -> Outcome:
    """A byte flipped in, or the end cut off, one stored file: noticed, then redone or refused,
    never used.
    """
    kind = trial.draws.choice(sorted(KINDS))
    pattern, number = KINDS[kind]
    trial.begin_from(len(STEPS) - 1)
    if number == len(STEPS) - 1:  # the last step's own file
        shutil.rmtree(trial.folder)
        shutil.copytree(trial.reference.state(len(STEPS)), trial.folder)
    paths = sorted(trial.folder.glob(pattern))
    if "factors" in kind:  # read only where scores are missing
        shutil.rmtree(trial.folder / "checkpoints/demo/influence/scores/ekfac_damping0.0001")
        paths = [path for path in paths if "exact" not in str(path)]
    path = trial.draws.choice(paths)
    name, how = path.relative_to(trial.folder).as_posix(), damage(path, trial.draws)
    status, text = run(STEPS[number], trial.folder)
    what = f"{kind}: {how.split(' of ')[0]}"
    if status == 2 and "error: " in text and "Traceback" not in text:
        return Outcome(True, f"{kind}: refused")
    if status:
        return Outcome(False, what, f"{name}, {how}: status {status}: {text[-400:]}")
    after = trial.reference.state(len(STEPS) - 1 if number < len(STEPS) - 1 else len(STEPS))
    expected, found = contents(after), contents(trial.folder)
    lost = (
        {key for key in expected if "self_scores" in key or "report" in key}
        if "factors" in kind
        else set()
    )
    wrong = [key for key in expected if key not in lost and expected[key] != found.get(key)]
    if not wrong:
        return Outcome(True, f"{kind}: noticed and made again, or nothing changed")
    if wrong == [name] and "damaged" not in text and number not in (6, 7):
        return Outcome(False, what, f"{name}, {how}: stays damaged and nothing was said")
    bad = [key for key in wrong if key != name]
    return Outcome(
        not bad,
        f"{kind}: left alone" if not bad else what,
        f"{name}, {how}; differs: {', '.join(bad[:4])}",
    )


def damaged_part(trial: Trial) -> Outcome:
    """A bit flipped in what a killed analysis had saved of its sums: it does not count, the end is
    as without it.
    """
    number = trial.draws.choice((1, 2))
    step = trial.begin_from(number)
    for _ in range(5):
        running, wait = (
            Running(step, trial.folder),
            trial.draws.uniform(0, trial.reference.seconds[number] / 2),
        )
        time.sleep(wait)
        while running.process.is_alive() and not list(trial.folder.rglob("progress/*/*.pt")):
            time.sleep(0.001)
        running.kill()
        if paths := sorted(trial.folder.rglob("progress/*/*.pt")):
            how = damage(trial.draws.choice(paths), trial.draws)
            return trial.finish(number, f"saved sums: {how.split(' of ')[0]}")
    return Outcome(None, "never killed while sums lay on the disk")

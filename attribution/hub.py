"""Models and data sets of the model hub or of folders: opened, with one sentence for what fails,
soon after a hub does not answer.
"""

import contextlib
import errno
import pickle
import threading
from pathlib import Path

import datasets
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from attribution.files import Refused, printable

SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".json",
    ".txt",
    ".parquet",
    ".csv",
    ".tsv",
    ".jsonl",
    ".arrow",
)
# Seconds until a hub that does not answer counts as out of reach; transformers retries for 47.
# HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT, variables of the hub's library, make it longer,
# for instance behind a slow proxy.
PATIENCE = float(max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT))


def hub_answers() -> bool:
    """Whether the model hub answers within PATIENCE seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def request() -> None:
        with contextlib.suppress(Exception):  # any error means that the hub did not answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE - 1))

    # In a thread: a name server that hangs ignores every time limit.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


def open_asset(name: str, flag: str, what: str, load):
    """Result of load(), which opens the folder or hub asset `name`; errors become one sentence
    (Refused).

    flag: the argument that named it. what: its kind, for the message. If the hub does not answer,
    the process uses earlier downloads only from then on.
    """
    path = Path(name)
    local = path.exists()
    if path.is_dir():
        refuse_pointers(path)
        if what == "model":
            refuse_outer(path, flag)
    # A hub id is `name` or `owner/name`, and does not begin with a dot.
    if not local and (path.is_absolute() or len(path.parts) > 2 or name.startswith((".", "~"))):
        raise Refused(f"there is no {name!r}; check {flag}")
    if not local and not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return load()
    except Refused:
        raise
    except Exception as error:
        if fault := fault_of_cache(error):
            raise Refused(fault) from error
        if not local and constants.HF_HUB_OFFLINE:
            models = "--model_name_or_path" if flag == "--dataset_path" else flag
            raise Refused(
                f"the model hub is out of reach and the {what} {name!r} is not on this machine; "
                f"name local folders with {models} and --dataset_path"
            ) from error
        raise Refused(
            f"cannot open the {what} {name!r} ({reason_of(error)}); check {flag}"
        ) from error


def refuse_pointers(folder: Path) -> None:
    """Raises Refused for an adapter, and if a file of the folder, or of one in it, is a Git LFS
    pointer.
    """
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.suffix in SUFFIXES:
            refuse_pointer(path)
    if (folder / "adapter_config.json").is_file():
        raise Refused(
            f"{folder} holds an adapter, not a model; merge it into its model first (PEFT: "
            "merge_and_unload)"
        )


def refuse_pointer(path: Path) -> None:
    """Raises Refused for a file that is a Git LFS pointer."""
    if not path.is_file() or path.stat().st_size >= 1024:
        return
    if path.read_bytes().startswith(b"version https://git-lfs"):
        raise Refused(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")


def refuse_outer(folder: Path, flag: str) -> None:
    """Raises Refused for a folder around models, such as a Trainer's output, and names them.

    flag: the argument that named the folder.
    """
    inner = sorted(path.parent.name for path in folder.glob("[!.]*/config.json"))
    if inner and not (folder / "config.json").is_file():
        raise Refused(
            f"{folder} holds no model, but folders with one ({', '.join(inner)}); name one: {flag}"
        )


def causes_of(error: BaseException) -> list[BaseException]:
    """The error and its causes."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        if cause in chain:
            break
        chain.append(cause)
    return chain


def fault_of_cache(error: BaseException) -> str:
    """One sentence about the cache of the hub's libraries if it is behind the error, else empty."""
    places = datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE, constants.HF_HOME
    for one in causes_of(error):
        if not isinstance(one, OSError) or not isinstance(one.filename, str):
            continue
        for place in map(Path, places):
            if Path(one.filename).is_relative_to(place) or place.is_relative_to(one.filename):
                return (
                    f"the cache folder {place} of models and data sets cannot be used "
                    f"({one.filename}: {one.strerror}); set HF_HOME (or HF_DATASETS_CACHE and "
                    "HF_HUB_CACHE, where they are set) to another folder"
                )
    return ""


def reason_of(error: BaseException) -> str:
    """Reason of an error in a few words: the message, among it and its causes, that says most."""
    chain = causes_of(error)
    for one in chain:
        if isinstance(one, UnicodeDecodeError):
            return "a file is not encoded as UTF-8"
        if isinstance(one, pickle.UnpicklingError):
            return "a file of weights is damaged, or holds more than weights"
        if isinstance(one, OSError) and one.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{one.filename} may not be read or written: {one.strerror}"
    messages = [str(one).strip() for one in chain]
    vague = ("", "An error occurred while generating the dataset")
    text = next((text for text in messages if text not in vague), type(error).__name__)
    return printable(text.splitlines()[0])[:300]

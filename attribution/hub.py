"""Opens models and data sets that may live on the model hub, and says quickly when the hub is
silent.
"""

import errno
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
# Seconds until an unanswered hub counts as out of reach; transformers itself retries for 47.
# HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT, the hub's own variables, make it longer: behind a
# slow proxy, say.
PATIENCE = float(max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT))


def hub_answers() -> bool:
    """Whether the model hub answers within PATIENCE seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE - 1).status_code)
        except Exception as error:  # whatever the client library raises: the hub did not answer
            answers.append(error)

    thread = threading.Thread(
        target=ask, daemon=True
    )  # a name server that hangs ignores every time limit
    thread.start()
    thread.join(PATIENCE)
    return bool(answers) and not isinstance(answers[0], Exception)


def open_asset(name: str, flag: str, what: str, load):
    """load(), which opens the folder or hub asset `name`; its errors become one sentence (Refused).

    Where the hub is silent, only what was downloaded before is used, for the rest of the process.
    """
    local = Path(name).exists()
    if not local and is_place(name):
        raise Refused(f"there is no {name!r}; check {flag}")
    if Path(name).is_dir():
        refuse_pointers(Path(name))
    if not local and not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return load()
    except Refused:
        raise
    except Exception as error:
        if not local and constants.HF_HUB_OFFLINE:
            models = "--model_name_or_path" if flag == "--dataset_path" else flag
            raise Refused(
                f"the model hub is out of reach and the {what} {name!r} is not on this machine; "
                f"name local folders with {models} and --dataset_path"
            ) from error
        raise Refused(
            f"cannot open the {what} {name!r} ({reason_of(error)}); check {flag}"
        ) from error


def is_place(name: str) -> bool:
    """Whether the name can only mean a folder or file: a hub id is `name` or `owner/name`, without
    dots before it.
    """
    path = Path(name)
    return path.is_absolute() or len(path.parts) > 2 or name.startswith((".", "~"))


def refuse_pointers(folder: Path) -> None:
    """Raises Refused where a file in the folder, or one below it, is a Git LFS pointer instead of
    the file itself.
    """
    paths = [
        path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in SUFFIXES
    ]
    for path in (path for path in paths if path.is_file() and path.stat().st_size < 1024):
        if path.read_bytes().startswith(b"version https://git-lfs"):
            raise Refused(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise Refused(
            f"{folder} holds an adapter, not a model; merge it into its model first (PEFT: "
            "merge_and_unload)"
        )


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words: of an error, and of those that caused it, the one that says
    most.
    """
    chain = [error]
    while (
        cause := chain[-1].__cause__ or chain[-1].__context__
    ) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, UnicodeDecodeError):
            return "a file is not encoded as UTF-8"
        if isinstance(one, OSError) and one.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{one.filename} may not be read or written: {one.strerror}; HF_HOME says where the cache lies"
    said = [str(one).strip() for one in chain]
    vague = ("", "An error occurred while generating the dataset")
    text = next((text for text in said if text not in vague), type(error).__name__)
    return printable(text.splitlines()[0])[:300]

"""Opens models and data sets that may live on the model hub, and says quickly when the hub is silent."""

import threading
from pathlib import Path

import datasets
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from attribution.files import Refused

PATIENCE = 5.0  # seconds until an unanswered hub counts as out of reach; transformers itself retries for 47


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

    thread = threading.Thread(target=ask, daemon=True)  # a name server that hangs ignores every time limit
    thread.start()
    thread.join(PATIENCE)
    return bool(answers) and not isinstance(answers[0], Exception)


def open_asset(name: str, flag: str, what: str, load):
    """load(), which opens the folder or hub asset `name`; its errors become one sentence (Refused).

    Where the hub is silent, only what was downloaded before is used, for the rest of the process.
    """
    local = Path(name).is_dir()
    if not local and not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return load()
    except Exception as error:
        if not local and constants.HF_HUB_OFFLINE:
            raise Refused(
                f"the model hub is out of reach and the {what} {name!r} is not on this machine; name local folders "
                "with --model_name_or_path and --dataset_path"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"cannot open the {what} {name!r} ({reason}); check {flag}") from error

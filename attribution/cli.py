"""Command lines: parsers, options that are dataclass fields, checks of values, exit statuses."""

import argparse
import atexit
import dataclasses
import difflib
import errno
import io
import itertools
import math
import os
import select
import sys
import time
from typing import Any, NoReturn

import safetensors

from attribution.files import Refused, is_disk_full, printable

WAIT = 2.0  # seconds until a process other than the first of its launch says why it fails


class HelpLayout(argparse.RawDescriptionHelpFormatter):
    """Layout of the help text: short names for values, the docstring as it is."""

    def _get_default_metavar_for_optional(self, action) -> str:
        return {int: "N", float: "X"}.get(action.type, "VALUE")


class Parser(argparse.ArgumentParser):
    """A script's parser: `--help` shows the common arguments, `--help_all` all of them.

    description: the script's docstring. epilog: printed by `--help_all` only. rare: names of the
    arguments that `--help` leaves out. A wrong argument is one sentence (Refused).
    """

    def __init__(self, description: str | None, epilog: str | None = None, rare=()) -> None:
        super().__init__(
            usage="%(prog)s --dataset_name NAME [arguments]",
            description=description,
            epilog=epilog,
            formatter_class=HelpLayout,
            allow_abbrev=False,
        )
        self.rare = set(rare)
        self.show_all = False
        self.add_argument("--help_all", nargs=0, action=HelpAll, help="show every argument")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Group of arguments with this title, made at the first call."""
        known = {group.title: group for group in self._action_groups}
        return known.get(title) or self.add_argument_group(title)

    def format_help(self) -> str:
        """Help text without the rare arguments and the epilog, unless all is to be shown."""
        if not self.show_all:
            for action in self._actions:
                if action.dest in self.rare:
                    action.help = argparse.SUPPRESS
            self.epilog = "--help_all shows every argument." if self.rare else None
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):
        """Parsed arguments. Raises Refused for one whose value is empty, as of an unset variable in
        a shell.
        """
        words = sys.argv[1:] if args is None else list(args)
        for flag, value in itertools.pairwise([*words, None]):
            # Before argparse finds other faults of the line: a slip of the pen explains them.
            if flag.startswith("--") and flag.split("=")[0] not in {
                *self._option_string_actions,
                "--",
            }:
                self.error(f"unrecognized arguments: {flag}")
            if flag.startswith("--") and (value == "" or flag.endswith("=")):
                raise Refused(f"{printable(flag.rstrip('='))} is empty; give it a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        """Raises Refused: a wrong argument ends like other refused input."""
        kind, _, unknown = message.partition("unrecognized arguments: ")
        flag = unknown.split("=")[0].split(" ")[0]
        if not kind and flag.startswith("--"):
            near = did_you_mean(flag, self._option_string_actions)
            message = f"there is no argument {printable(flag)}{near}"
        raise Refused(f"{message}; --help lists the arguments")


class HelpAll(argparse.Action):
    """Argument `--help_all`: prints the whole help text and ends."""

    def __call__(self, parser, *_) -> None:
        parser.show_all = True
        parser.print_help()
        parser.exit()


# --- options that are dataclass fields ------------------------------------------------------------


def option(
    default,
    help: str,
    *,
    group: str = "how scores are computed",
    rare: bool = False,
    name: str = "",
    fingerprint: str = "",
    **argument,
) -> Any:
    """A dataclass field that is also a command line argument of the same name.

    group: title of its group in the help text. rare: left out of `--help`. name: part that the
    field adds to the name of a stored result where it is not at its default, as "rank{}".
    fingerprint: kind of result that depends on it, see `influence.settings`. argument: further
    keywords of `add_argument`.
    """
    metadata = {
        "help": help,
        "group": group,
        "rare": rare,
        "name": name,
        "fingerprint": fingerprint,
        "argument": argument,
    }
    return dataclasses.field(default=default, metadata=metadata)


def add_options(parser: Parser, options: type) -> None:
    """Adds the fields of a dataclass that `option` made as arguments of the parser."""
    for field in dataclasses.fields(options):
        if not field.metadata:
            continue
        argument = dict(field.metadata["argument"])
        if isinstance(field.default, bool):
            argument["action"] = "store_true"
        else:
            argument = {"default": field.default, "type": type(field.default)} | argument
        if field.metadata["rare"]:
            parser.rare.add(field.name)
        add = parser.group(field.metadata["group"]).add_argument
        add(f"--{field.name}", help=field.metadata["help"], **argument)


def options_of(options: type, args: argparse.Namespace):
    """Dataclass filled from parsed arguments; fields without an argument keep their default."""
    names = [field.name for field in dataclasses.fields(options)]
    return options(**{name: value for name, value in vars(args).items() if name in names})


def flags_of(options) -> str:
    """Command line arguments for the fields of a dataclass that are not at their default."""
    flags = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata and value != field.default:
            argument = "" if isinstance(field.default, bool) else f" {shown_value(value)}"
            flags.append(f"--{field.name}{argument}")
    return " ".join(flags)


def shown_value(value) -> str:
    """Value of an option as an argument and in names: short numbers, `heuristic` for None."""
    if value is None:
        return "heuristic"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- checks ---------------------------------------------------------------------------------------


def about_minutes(seconds: float) -> str:
    """`about 12 minutes`, or `under two minutes`."""
    minutes = seconds / 60
    return "under two minutes" if minutes < 1.5 else f"about {minutes:,.0f} minutes"


def check_numbers(values: dict, *positive: str) -> None:
    """Raises Refused for a value (argument name -> value or None) that is not finite, or not above
    zero although its name is among `positive`.

    Seeds are integers from 0 up, of at most 62 bits: NumPy and torch refuse larger ones, and seeds
    of members and retrains are counted up from them.
    """
    for name, value in values.items():
        if name.endswith("seed") and value is not None and not 0 <= value < 2**62:
            raise Refused(f"--{name} must be from 0 up and below 2**62, not {value}")
        if name == "first_query" and value < 0:
            raise Refused(f"--{name} must be a validation row from 0 up, not {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(f"--{name} must be a finite number, not {value}")
        if name in positive and value is not None and value <= 0:
            raise Refused(f"--{name} must be above 0, not {value}")


def did_you_mean(name: str, known) -> str:
    """` (did you mean 'sst2'?)` if one of the known names is near, else empty."""
    plain = name.casefold().replace("-", "").replace("_", "")
    for spelling in (name, plain):
        for near in difflib.get_close_matches(spelling, known, n=1):
            return f" (did you mean {near!r}?)"
    return ""


def given_arguments(argv: list[str] | None) -> set[str]:
    """Names of the arguments on a command line (None: that of this process), defaults left out.

    The name of --no-x is x.
    """
    words = sys.argv[1:] if argv is None else argv
    return {
        word[2:].partition("=")[0].removeprefix("no-") for word in words if word.startswith("--")
    }


def refuse_idle(idle: set[str], beside: str) -> None:
    """Raises Refused if there are idle arguments: given, and without an effect beside another."""
    if idle:
        raise Refused(f"--{min(idle)} has no effect beside --{beside}; leave one of them out")


# --- running --------------------------------------------------------------------------------------


def run_script(main, argv: list[str] | None = None) -> int:
    """Exit status of main(argv): 0 done, 2 refused, 130 interrupted, 141 if nobody reads the output
    any more, as after `| head -1`; other exceptions pass (1).

    A process of a launch waits before it says why it fails, unless it is the first: the launcher
    ends it as soon as the first has said so.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII only
    try:
        try:
            main(argv)
            sys.stdout.flush()
            return 0
        except BaseException as error:
            if os.environ.get("RANK", "0") != "0":
                time.sleep(WAIT)
            status, message = explanation_of(error)
            if not message:
                raise
            print(printable(message), file=sys.stderr)  # it may quote the user's data
            return status
    except BrokenPipeError:
        if is_read(sys.stdout) and is_read(sys.stderr):
            raise
        return 141
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # Python would try again at its end, and complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end(status: int) -> NoReturn:
    """Ends a script's process, after the functions that libraries registered for its end.

    Python's own way takes 3 s to look at every object of the libraries, and triton's binding lists
    those that it kept, hundreds of lines.
    """
    atexit._run_exitfuncs()
    os._exit(status)


def tell_start(what: str) -> None:
    """Says on a terminal what is done, before the libraries are imported, which takes seconds."""
    if sys.stderr.isatty():
        print(f"{what}: importing torch and transformers", file=sys.stderr)


def is_read(stream) -> bool:
    """Whether what is written to the stream can arrive: it is no pipe whose reader has ended."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def explanation_of(error: BaseException) -> tuple[int, str]:
    """(exit status, one sentence) about an error; the sentence is empty if only a traceback can
    tell.
    """
    text = ""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; finished work is kept, and the same command continues"
    if isinstance(error, Refused):
        text = str(error)
    elif isinstance(error, (OSError, safetensors.SafetensorError)):
        text = explanation_of_file(error)
    return (2, f"error: {text}") if text else (1, "")


def explanation_of_file(error: Exception) -> str:
    """One sentence about an error of a file; empty if only a traceback can tell."""
    from attribution.hub import fault_of_cache  # datasets takes a second to import

    if is_disk_full(error):
        return "the disk is full; free some space and run the same command again"
    if fault := fault_of_cache(error):
        return fault
    if isinstance(error, FileNotFoundError):
        return f"a file disappeared ({error.filename or error}); run the same command again"
    denied = (errno.EACCES, errno.EPERM, errno.EROFS)
    if isinstance(error, OSError) and error.errno in denied and error.filename:
        return f"{error.filename} may not be read or written ({error.strerror})"
    return ""

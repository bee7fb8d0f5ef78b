"""The command line: the list of commands, and one line for every error.

Exit status: 0 done, 1 failed, 2 something given cannot be used, 128 + N stopped by signal N (130 is Ctrl-C).
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.commands import (
    batch,
    bench,
    checkpoints,
    demo,
    drill,
    evaluate,
    export,
    lr,
    predict,
    preflight,
    recipes,
    register,
    shards,
    submit,
    tracking,
    train,
    ui,
    weights,
)
from pipelines.commands.arguments import completing
from pipelines.commands.parser import Parser
from pipelines.console import fail
from pipelines.streams import flush_streams, open_streams

DESCRIPTION = """\
Train anchor-free object detectors on COCO-format data, and resume to the exact sample.

A first training, minutes on two cores:
  aweigh demo

Your own data:
  aweigh shards build --annotations instances.json --images photos \\
      --output shards --split train
  aweigh train centernet_resdcn18_1x --data.train shards/train \\
      --data.validation shards/val --run.name first
  aweigh evaluate runs/first      AP of the best checkpoint
  aweigh predict runs/first photos --output found
  aweigh ui                       compare runs in MLflow

The same `aweigh train` command resumes a run that was stopped, killed or lost.
"""

EPILOG = """\
`aweigh COMMAND --help` explains a command. To complete commands, recipes and
fields with Tab in bash or zsh, run this, or add it to ~/.bashrc or ~/.zshrc:
  eval "$(register-python-argcomplete aweigh)"
"""

# In the order in which `aweigh --help` lists them.
COMMANDS = (
    demo,
    train,
    evaluate,
    predict,
    export,
    recipes,
    shards,
    submit,
    weights,
    register,
    checkpoints,
    preflight,
    batch,
    lr,
    bench,
    drill,
    tracking,
    ui,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    if arguments is None:
        open_streams()
    try:
        _run(arguments)
    except SystemExit as end:
        # Threads of a Ray that was interrupted may crash the interpreter while it ends, after the last line.
        if arguments is None and "ray" in sys.modules and isinstance(end.code, int) and end.code:
            flush_streams()
            os._exit(end.code)
        raise


def _run(arguments: Sequence[str] | None) -> None:
    parser = command_line()
    if completing():
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = parser.parse_known_args(words)
    known.rest = rest
    # Warnings of any library, and all that our packages log, as plain lines.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("aweigh").setLevel(logging.INFO)
    from cluster.errors import ClusterError, StoppedError, WorkersFailedError
    from cluster.signals import NAMES, interrupting
    from data_shards.errors import DataError
    from detectors.errors import DetectorError
    from pipelines.errors import ConfigError

    mistakes: tuple[type[Exception], ...] = (ConfigError, DataError, DetectorError, ClusterError)
    interruption = None
    try:
        with interrupting() as interruption:
            known.run(known)
    except KeyboardInterrupt:
        then = getattr(known, "when_stopped", "")
        number = signal.Signals((interruption and interruption.number) or signal.SIGINT)
        fail(f"stopped with {NAMES[number]}{'; ' if then else ''}{then}.", 128 + number)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedError as error:
        fail(f"{error}; run the same command again to resume from the last checkpoint.", 128 + error.signal)
    except WorkersFailedError as error:
        fail(str(error), 1)
    except mistakes as error:
        fail(str(error))


def command_line() -> argparse.ArgumentParser:
    """Build the parser of all commands; fields of a recipe are left over for the command."""
    parser = Parser(
        prog="aweigh", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and the git commit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """Print the version only if asked: git takes longer than the rest of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"aweigh {version()}")
        parser.exit()


def version() -> str:
    """Return the installed version, and the commit if this is a git checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        number = installed("aweigh")
    except PackageNotFoundError:
        number = "(not installed)"  # run from a folder, as a submitted job is
    checkout = Path(__file__).resolve().parent.parent
    # Without this check, git would name the commit of whatever project this is installed into.
    if not (checkout / ".git").exists():
        return number
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return number
    return f"{number}, commit {commit}"

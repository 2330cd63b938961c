"""The command line. Data goes to stdout, everything else to stderr; exit codes are those of `modelcache.errors`.

One module a command; each has ``add(parser)``, which declares its arguments, and ``run(arguments, console)``, which
returns an exit code. What they share (root, output, progress, signals) is in `console` and here.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

from .. import configfiles
from ..errors import ModelCacheError, UsageError
from ..settings import PROGRESS
from .console import Console

COMMANDS = {
    "init": "make a cache that several users share, or change who may use one",
    "get": "fetch a model if it is not cached, and print its path",
    "path": "print the path of a cached model; never fetches",
    "derive": "compile a model, or make something else of it, once for this machine, and print the path",
    "prewarm": "fetch every model of a manifest",
    "lock": "write models.lock: the exact bytes that a manifest means",
    "ls": "list what is cached",
    "du": "show what each model takes of the disk",
    "info": "show everything known of one model",
    "verify": "read and hash what is cached; set aside what is corrupt",
    "rm": "remove models from the cache",
    "pin": "keep a model until it is unpinned",
    "unpin": "take a pin off",
    "gc": "remove what nothing names, what crashes left, and what is beyond a limit",
    "export": "write models to a folder or a file, for a machine without a network",
    "import": "take models from what export wrote",
    "tiers": "show what is asked before any source, and how it is; sync copies what is missing",
    "stats": "count what is on disk",
    "config": "show every setting, and where it comes from",
    "doctor": "examine the cache directory and its file system",
}
_MODULES = {
    "rm": "remove",
    "import": "import_",
}  # Where the name of a command cannot be, or says less than, a module's.
EXIT_CODES = """\
exit codes:
  0 ok               4 not found        8 no space left
  1 failure          5 access denied    9 lock timeout
  2 usage            6 network         10 offline, and not cached
  3 some of many     7 integrity       11 models.lock has drifted
  12 refused by a policy             13 could not be derived
  14 a tier or backend failed
  130 interrupted (SIGINT)   143 terminated (SIGTERM); what had arrived is resumed next time
"""


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` on the way runs."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(problem=message, hint=f"`{self.prog} --help` shows what it takes")


def run(argv: Sequence[str]) -> int:
    """Run the command in *argv* and return its exit code. No exception leaves, whatever *argv* holds."""
    console = Console()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments = _parse(argv)
        console = Console(json=arguments.json, quiet=arguments.quiet)
        progress = arguments.progress or configfiles.load(os.environ)[0].progress
        console = Console(json=arguments.json, quiet=arguments.quiet, progress=progress)
        code: int = arguments.run(arguments, console)
        console.close()
        return code
    except ModelCacheError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        console.interrupted("interrupted")
        return 130
    except Terminated:
        if console.lost is None:
            console.interrupted("terminated")
            return 143
        return _unprinted(console, console.lost)
    except OSError as error:  # All others are typed: this is our own output.
        return _unprinted(console, error)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _unprinted(console: Console, error: OSError) -> int:
    """Be done with an output that cannot be written; return the exit code."""
    console.close()
    if not isinstance(error, BrokenPipeError):  # Whoever closes a pipe (`modelcache ls | head`) has what he wants.
        console.say(f"error: the output could not be written: {error.strerror or error}")
        console.say("hint: What is cached stays; send the output elsewhere and call again")
    if sys.stdout is not None:
        # What is still buffered must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments. Only the module of the command that was named is imported."""
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--root", metavar="DIR", help="the cache directory (default: MODELCACHE_DIR, ~/.cache/modelcache)"
    )
    shared.add_argument("--json", action="store_true", help="print JSON on stdout")
    shared.add_argument("-q", "--quiet", action="store_true", help="print nothing but data and errors")
    shared.add_argument(
        "--progress",
        choices=PROGRESS,
        help="how progress is shown on stderr (default: auto, bars on a terminal and a line now and then elsewhere)",
    )
    parser = _Parser(
        prog="modelcache",
        description="A multiprocess cache for machine-learning models with crash-safe writes.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"modelcache {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=[shared]
        )
        if name == named:
            module = import_module(f"{__name__}.{_MODULES.get(name, name)}")
            module.add(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("modelcache")
    except PackageNotFoundError:
        return "(not installed)"

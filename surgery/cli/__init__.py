"""The command line: parses, calls, prints. Everything it does, the library does.

Results go to standard output, as text or (`--json`) as JSON; progress and errors go to standard error.
Exit codes: 0 done, 1 the input is wrong, 2 the command line is wrong, 3 the gate rejected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from surgery.cli.outcome import DONE, INTERRUPTED, WRONG_INPUT, WRONG_USAGE, Outcome
from surgery.errors import Cancelled, SurgeryError

# The order of `surgery --help`. Every module in `commands/` is a command, named here or not.
ORDER = (
    ("fetch", "run", "solve", "apply", "undo", "show", "diff"),
    ("audit", "compare", "ladder", "flinch", "answers", "debate", "crosscheck"),
    ("stats", "direction", "dial", "trace", "tune", "export"),
)


def command_names() -> list[str]:
    """The names of all commands."""
    import surgery.cli.commands as package

    found = {module.name for module in iter_modules(package.__path__)}
    known = [name for group in ORDER for name in group if name in found]
    return known + sorted(found.difference(known))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else WRONG_USAGE
    _calm()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            # Whatever a library prints must not end up among the results.
            with contextlib.redirect_stdout(sys.stderr):
                outcome: Outcome = args.run(args)
        _print(outcome, args.json)
        return outcome.code
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more on exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (KeyboardInterrupt, Cancelled):
        return _fail("interrupted", INTERRUPTED)
    except (SurgeryError, OSError, MemoryError) as error:
        return _fail(_explain(error), WRONG_INPUT)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return _fail("out of memory: take a smaller batch, model or device", WRONG_INPUT)


# ---------------------------------------------------------------------- the command line
def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Only the module of the command that was named is imported; for help, all (they are light)."""
    parser = argparse.ArgumentParser(
        prog="surgery",
        description="Edit language models after training, and measure what each edit did and broke.",
        epilog="`surgery COMMAND --help` says more. Exit codes: 0 done, 1 the input is wrong, "
        "2 the command line is wrong, 3 the gate rejected.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=14),
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    _common(parser, default=False)
    known = command_names()
    group = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    named = next((word for word in argv if not word.startswith("-")), None)
    if named is not None and named not in known:
        parser.error(f"no command {named!r}{_nearest(named, known)}; `surgery --help` lists all")
    for name in known if named is None else [named]:
        module: Any = import_module(f"surgery.cli.commands.{name}")
        sub = group.add_parser(
            name, help=module.HELP, description=_sentence(module.HELP), allow_abbrev=False
        )
        if named is not None:
            module.arguments(sub)
            _common(sub, default=argparse.SUPPRESS)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    if args.version:
        print(_version())
        raise SystemExit(DONE)
    if args.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(WRONG_USAGE)
    return args


def _common(parser: argparse.ArgumentParser, default: Any) -> None:
    """Options every command takes, before its name or after it."""
    parser.add_argument(
        "--json", action="store_true", default=default, help="print the result as JSON"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"surgery {version('lm-surgery')}"
    except PackageNotFoundError:
        return "surgery, not installed"


# ---------------------------------------------------------------------- what comes out
def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_finite(outcome.data), indent=2, ensure_ascii=False, default=str))
    elif outcome.text:
        print(outcome.text)
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """The same data with NaN and infinity as null: JSON has neither."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _explain(error: BaseException) -> str:
    if isinstance(error, SurgeryError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory: take a smaller batch, model or device"
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{error.strerror}: {' -> '.join(places)}" if places else error.strerror
    return str(error) or type(error).__name__


def _out_of_memory(error: RuntimeError) -> bool:
    """torch says so in an exception of its own on a GPU, and in plain words on a CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _calm() -> None:
    """Other libraries speak up about many things that are ours to know, not the user's."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

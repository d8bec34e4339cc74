"""The command line: `abc-embed COMMAND`, one file per command, imported only when it is used.

What ends a command becomes an exit code and one plain sentence: 0 done, 1 failed, 2 wrong usage,
130 stopped with Ctrl-C.
"""

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from abc_embed.errors import AbcError

STOPPED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells expect."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process; without `arguments`, those of the process."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. What went wrong is on stderr, in one sentence."""
    _open_standard_streams()
    _print_anything()
    # Pillow's own limit, which --decode-limit may have been raised above.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    try:
        from abc_embed.cli.parser import command_line  # here, so that Ctrl-C is heeded from now on

        with _messages_to_stderr():
            command_line(arguments)(args=list(arguments), prog_name="abc-embed")
        code = 0
    except SystemExit as leaving:  # what the parser ends with, done or not
        code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except AbcError as error:
        code = error.exit_code if error.reported_elsewhere else _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = STOPPED
    except OSError as error:
        code = _failed(f"{error.filename or 'the output'}: {error.strerror or error}", 1)
    if code == STOPPED:  # the parser turns Ctrl-C into this code without a word
        sys.stderr.write("Stopped.\n")
    return _flushed(code)


def _open_standard_streams() -> None:
    """Put something in the place of streams that are closed, or the next files take their numbers.

    Nothing comes from such a stdin; what is written to such a stdout fails when it is flushed.
    """
    for name, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            stream = open(os.open(os.devnull, flags), mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def _print_anything() -> None:
    """What the output's encoding lacks (cp1252 on Windows, say) is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _failed(sentence: str, code: int) -> int:
    sys.stderr.write(f"Error: {sentence}\n")
    return code


def _flushed(code: int) -> int:
    """The exit code, once everything is really written: a full disk shows only here."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, like `head`
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        if code == 0:  # else it is known already that the command failed, and why
            why = "stdout is closed" if error.errno == errno.EBADF else error.strerror
            return _failed(f"the output: {why}", 1)
    return code


def _drop_stdout() -> None:
    """What is left in the buffer cannot be written: keep Python from trying again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _messages_to_stderr() -> Iterator[None]:
    """Notes and warnings of the package, as plain lines, while the command runs."""
    loggers = [logging.getLogger(name) for name in ("abc_embed", "experiments")]
    levels = [logger.level for logger in loggers]
    handler = logging.StreamHandler()  # stderr as it is now
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)

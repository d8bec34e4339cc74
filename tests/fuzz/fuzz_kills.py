"""Saves that are killed at any moment, and disks that are full or may not be written."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import golden_parts
from fuzzing import Report

from abc_embed import Embedder, checkpoint
from abc_embed.errors import OutputError
from abc_embed.storage.files import atomic_write

NOBODY = 65534
LONGEST_S = 0.25
"""Of life before a kill; a save takes less."""


def fuzz_kills(count: int, seed: int, scratch: Path) -> Report:
    """A child saves a model and a file over and over and is killed; both are whole at any time."""
    rng, report = random.Random(seed), Report("kills")
    mine, file = scratch / "mine", scratch / "file"
    good = [golden_parts.published(instruct) for instruct in (True, False)]
    prints = {Embedder(*loaded).fingerprint for loaded in good}

    def save(number: int) -> None:
        checkpoint.save(*good[number % 2], mine)
        with atomic_write(file) as out:
            out.write(bytes([number % 2]) * 100_000)

    def look() -> None:
        found = Embedder.from_pretrained(mine, device="cpu").fingerprint
        if found not in prints or len(set(file.read_bytes())) != 1:
            raise RuntimeError("what is there is neither the one nor the other")

    def endless() -> None:
        for number in range(10**9):
            save(number)

    def next_save() -> None:
        save(0)
        left = sorted(path.name for path in scratch.iterdir())
        if left != ["file", "mine"]:
            raise RuntimeError(f"a kill left {left}")

    save(0)
    for number in range(count):
        child = _fork(endless)
        time.sleep(rng.random() * LONGEST_S)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        report.run(f"kill {number}", look)
        if number % 10 == 9:
            report.run(f"the save after kill {number}", next_save)
    return report


def fuzz_disks(count: int, seed: int, scratch: Path) -> Report:
    """Saves on a disk that is full after so many bytes, and where nothing may be written."""
    rng, report = random.Random(seed), Report("full and read-only disks")
    loaded = golden_parts.shared()
    sizes = [rng.randrange(1, 2_500_000) for _ in range(count)]
    for number, size in enumerate(sizes):
        mine = scratch / "full"
        checkpoint.save(*loaded, mine)
        before = (mine / "abc.json").read_bytes()

        def full(size: int = size, mine: Path = mine) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            _refused(lambda at=mine: checkpoint.save(*loaded, at), may_work=True)

        def whole(
            full: Callable[[], None] = full, before: bytes = before, mine: Path = mine
        ) -> None:
            _wait(_fork(full))
            if (mine / "abc.json").read_bytes() != before or len(list(scratch.iterdir())) != 1:
                raise RuntimeError("a full disk left something")
            Embedder.from_pretrained(mine, device="cpu")

        report.run(f"full after {size} bytes, {number}", whole)
    locked = scratch / "locked"
    locked.mkdir()
    locked.chmod(0o555)

    def read_only() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        _refused(lambda: checkpoint.save(*loaded, locked / "mine"))

    report.run("a folder that may not be written", lambda: _wait(_fork(read_only)))
    shutil.rmtree(locked)
    return report


def _refused(save: Callable[[], None], may_work: bool = False) -> None:
    try:
        save()
    except OutputError:
        return
    if not may_work:
        raise RuntimeError("it was written")


def _fork(work: Callable[[], None]) -> int:
    """A child process that does this, without what a test framework does at an end."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001  (a child says it and ends)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the child ended with {status}")

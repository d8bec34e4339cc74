"""Seeded mutation of files, and what became of each case: read, refused, or a fault."""

import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from abc_embed.errors import AbcError

LIMIT_S = 30
"""A case that computes for longer, in processor time, is a fault."""
HANG_S = 300
"""A case that takes longer, however busy the machine is, hangs."""
MEMORY_LIMIT_MB = 1024
"""A case may not raise the memory of the process by more, above what was there before the first."""
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**7, 10**18, 10**400, 0.5, 1e30, float("nan"), float("inf")),
    *(
        "",
        "x",
        "x" * 5000,
        "\ud800",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
        "(a+)+$",
        "{{ 'a' * 6000000000 }}",
    ),
)


class Hang(BaseException):
    """A case took longer than `HANG_S`."""


@dataclass
class Report:
    """What became of the cases of one kind."""

    kind: str
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    """Processor time."""
    start_mb: float = 0.0
    """Peak memory of the process before the first case: its libraries, and the model."""
    peak_mb: float = 0.0

    @property
    def cases(self) -> int:
        return self.read + sum(self.refused.values()) + len(self.faults)

    def run(self, name: str, case: Callable[[], object]) -> None:
        """One case: an error of ours is a refusal; another exception, or much memory, a fault."""
        self.start_mb = self.start_mb or peak_mb()
        before_mb, start = peak_mb(), time.process_time()
        try:
            with time_limit():
                case()
            self.read += 1
        except AbcError as error:
            self.refused[type(error).__name__] += 1
            if "\n" in str(error).strip():
                self.faults.append(f"{name}: a message of several lines: {error!r:.200}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        taken_s = time.process_time() - start
        self.slowest_s = max(self.slowest_s, taken_s)
        if taken_s > LIMIT_S:
            self.faults.append(f"{name}: computed for {taken_s:.0f} s")
        self.peak_mb = peak_mb()
        above_mb = self.peak_mb - self.start_mb
        if self.peak_mb > before_mb and above_mb > MEMORY_LIMIT_MB:
            self.faults.append(f"{name}: memory rose by {above_mb:.0f} MB")

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cases": self.cases,
            "read": self.read,
            "refused": dict(sorted(self.refused.items())),
            "faults": self.faults,
            "slowest_s": round(self.slowest_s, 2),
            "start_mb": round(self.start_mb),
            "peak_mb": round(self.peak_mb),
        }


def peak_mb() -> float:
    """The most memory that this process has had."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, cut off, left out, doubled or made extreme."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not content:
            break
        at = rng.randrange(len(content))
        way = rng.randrange(6)
        if way == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            content[at:] = b""
        elif way == 2:
            del content[at : at + rng.randrange(1, 64)]
        elif way == 3:
            content[at:at] = content[at : at + rng.randrange(1, 64)]
        elif way == 4:
            content[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        else:
            content[at] = rng.randrange(256)
    return bytes(content)


def mutate_json(text: str, rng: random.Random) -> str:
    """One value, somewhere, becomes another, or goes."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        keys = part.keys() if isinstance(part, dict) else range(len(part))
        for key in list(keys)[:200]:
            places.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    walk(value)
    part, key = rng.choice(places)
    if rng.random() < 0.1:
        del part[key]
    else:
        part[key] = rng.choice(JUNK)
    return json.dumps(value)

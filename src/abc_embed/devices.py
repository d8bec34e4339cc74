"""Many items on several devices: one process each, the order kept.

Consecutive items go to whichever process is free, so that a slow device holds up no other. A
process that dies is named in the log, and another embeds its items again (workers.py).
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch

from abc_embed import runtime
from abc_embed.errors import InputError, UsageError
from abc_embed.inputs import Skipped
from abc_embed.pipeline import OnError, Results, Vector
from abc_embed.workers import map_in_processes

TASK_ITEMS = 256
"""Items that a process is given at a time, at most."""

Stream: TypeAlias = Callable[[Iterable[object]], Iterable[Vector | Skipped]]
"""Items -> what `Embedder.stream` gives with `on_error="skip"`."""
_Answer: TypeAlias = tuple[list[Vector], list[tuple[int, InputError]]]
"""The vectors of a task in order, and the places and errors of its bad items."""


def resolve_devices(names: Sequence[str | torch.device]) -> list[torch.device]:
    """The devices to compute on, each as often as it is named.

    Raises:
        UsageError: none is given, or one has no such name.
        DeviceError: this machine does not have one.
    """
    if isinstance(names, str) or not names:
        raise UsageError(f"devices is {names!r}; give a list, like ['cuda:0', 'cuda:1']")
    return [runtime.resolve_device(name) for name in names]


def device_of_process(device: str, number: int) -> str:
    """What `auto` means in process `number`: its own of several GPUs, in turn."""
    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if device == "auto" and count > 1 else device


def stream_in_processes(
    load: Callable[[int], Stream],
    values: Iterable[tuple[int, object]],
    processes: int,
    *,
    on_error: OnError = "raise",
    total: int | None = None,
) -> Results:
    """(index, item) pairs -> (index, result) pairs, in the same order.

    Args:
        load: called in process number so and so, with what it loads; it is pickled, and so are the
            items.
        values: read no further ahead than the processes need.
        processes: how many.
        on_error: as in `Embedder.stream`.
        total: number of items, where it is known: fewer are shared out more finely.

    Raises:
        InputError: a bad item, if `on_error` is "raise".
        UsageError: an item cannot be pickled.
        OutOfMemoryError: the processes died.
    """
    size = TASK_ITEMS if total is None else max(1, min(TASK_ITEMS, -(-total // (4 * processes))))
    pairs, sent = iter(values), deque[list[tuple[int, object]]]()

    def tasks() -> Iterator[bytes]:
        while chunk := list(islice(pairs, size)):
            sent.append(chunk)
            yield _pickled(chunk)

    for vectors, bad in map_in_processes(partial(_setup, load, processes), tasks(), processes):
        errors, rows = dict(bad), iter(vectors)
        for place, (index, item) in enumerate(sent.popleft()):
            if place not in errors:
                yield index, next(rows)
                continue
            skipped = Skipped(index, item, errors[place])
            if on_error == "raise":
                raise type(skipped.error)(str(skipped))
            yield index, skipped


def _pickled(chunk: list[tuple[int, object]]) -> bytes:
    try:
        return pickle.dumps([item for _, item in chunk])
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(
            f"an item cannot be handed to another process ({error}); give paths, bytes or arrays"
        ) from error


def _setup(
    load: Callable[[int], Stream], processes: int, number: int
) -> Callable[[bytes], _Answer]:
    """What process `number` does with each task; processes on one CPU share its cores."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    return partial(_embed, load(number))


def _embed(stream: Stream, task: bytes) -> _Answer:
    vectors: list[Vector] = []
    bad: list[tuple[int, InputError]] = []
    for place, result in enumerate(stream(pickle.loads(task))):
        if isinstance(result, np.ndarray):
            vectors.append(result)
        else:
            bad.append((place, result.error))
    return vectors, bad

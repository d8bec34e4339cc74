"""Peak memory of a training step, chunk size held and the batch made eight times as large.

    python tools/bench_gradcache.py --out memory.json

Each figure is taken in a process of its own: one small step first, so that weights, optimizer and
the libraries' own buffers are there, then the most memory that one step adds to what is held with
its batch already loaded (the kernel's high-water mark, reset before). The model is the bundled one
on pictures of 168 px; on a GPU the same activations lie on the device, and inputs are moved there
chunk by chunk.

`step_mib` is what one step adds, gradients included; `held_mib` are the weights and AdamW's means,
which are there before it and which a GPU's count of its peak has in it too; the libraries are in
neither. `step_growth` is what the larger batch adds as a share of the step alone, `peak_growth` as
a share of both; the smaller batch is a chunk per process.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SMALL, FACTOR, CHUNK, SIDE = 8, 8, 8, 168
STAGES = ("pretrain", "instruct")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one row of the table measures."""

    stage: str
    chunk_size: int
    gradient_checkpointing: bool
    processes: int


CASES = [
    *(Case(stage=s, chunk_size=0, gradient_checkpointing=False, processes=1) for s in STAGES),
    *(
        # A chunk counts rows, of which stage 2 has four an image here.
        Case(
            stage=s,
            chunk_size=CHUNK if s == "pretrain" else 4 * CHUNK,
            gradient_checkpointing=g,
            processes=p,
        )
        for s in STAGES
        for g, p in ((False, 1), (True, 2))
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != "65536":
        # Freed memory then goes back to the system at once, so that a step's peak is its own. It
        # must be set before the process begins.
        env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    import abc_embed.checkpoint
    import abc_embed.train.loop  # noqa: F401  (here, for all measurements)

    rows = []
    for case in CASES:
        # Without chunks eight times the batch is gigabytes; twice shows how it grows.
        factor = FACTOR if case.chunk_size else 2
        batch = SMALL * case.processes
        (held, small), (_, large) = (_in_processes(case, batch * f) for f in (1, factor))
        rows.append(
            asdict(case)
            | {"batch": batch, "factor": factor, "held_mib": held}
            | {"step_mib": small, "step_mib_of_larger": large}
            | {"step_growth": round(large / small - 1, 4)}
            | {"peak_growth": round((held + large) / (held + small) - 1, 4)}
        )
        print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(_record(rows), indent=1) + "\n", encoding="utf-8")


def _record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from abc_embed.runtime import versions

    return {
        "what": "most memory of a training step, MiB, on a CPU in float32",
        "model": "bundled",
        "side_px": SIDE,
        "rows": rows,
        "versions": versions(),
    }


def _in_processes(case: Case, batch: int) -> tuple[float, float]:
    """The figures of the process that needs most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    found: Any = context.SimpleQueue()
    started = [
        context.Process(target=_measure_as, args=(rank, port, case, batch, found))
        for rank in range(case.processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        sys.exit(f"a measurement failed: {case}")
    return max((found.get() for _ in started), key=sum)


def _measure_as(rank: int, port: int, case: Case, batch: int, found: Any) -> None:
    if case.processes > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        numbers = (rank, rank, case.processes, case.processes, port)
        place = {name: str(number) for name, number in zip(names, numbers, strict=True)}
        os.environ.update(place | {"MASTER_ADDR": "127.0.0.1"})
    found.put(measure(case, batch))


def measure(case: Case, batch_size: int) -> tuple[float, float]:
    """MiB held between steps, and what one on `batch_size` images of all processes adds."""
    import torch
    from accelerate import Accelerator

    from abc_embed import checkpoint
    from abc_embed.adapters import detach
    from abc_embed.train.batches import make_batch
    from abc_embed.train.config import AdapterConfig, RunConfig, TrainConfig
    from abc_embed.train.processes import GlobalBatch, ProcessGroup
    from abc_embed.train.stages import Instruct, Pretrain

    torch.set_num_threads(1)
    model, processor = checkpoint.load("bundled")
    detach(model)
    config = TrainConfig(
        stage=case.stage,  # type: ignore[arg-type]
        adapter=AdapterConfig(rank=8, alpha=16),
        train=RunConfig(
            steps=1,
            batch_size=batch_size,
            chunk_size=case.chunk_size,
            gradient_checkpointing=case.gradient_checkpointing,
        ),
    )
    kind = Pretrain if case.stage == "pretrain" else Instruct
    stage = kind(config, model, processor, ProcessGroup(Accelerator(cpu=True)))
    optimizer = torch.optim.AdamW(stage.parameters.values())

    def step(count: int) -> float:
        mine = groups(case.stage, count // case.processes, stage.process_group.rank)
        batch = make_batch(mine, processor, SIDE * SIDE)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        held = _status("VmRSS")
        stage.backward(GlobalBatch.gather(stage.process_group, batch, config.train))
        most = _status("VmHWM")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return (most - held) / 1024

    step(case.processes * 2)
    means = [m for kept in optimizer.state.values() for m in kept.values()]
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *means])
    return round(held / 2**20, 1), round(step(batch_size), 1)


def groups(stage: str, count: int, rank: int) -> list[Any]:
    """Noise with words: only sizes matter here."""
    from abc_embed.train.batches import caption_group, instruction_group

    random = np.random.default_rng([count, rank])
    made = []
    for i in range(count):
        image = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        words = [f"a thing {rank} {i} {n} beside another" for n in range(4)]
        asks = [(f"what is at place {n}?", word) for n, word in enumerate(words)]
        if stage == "pretrain":
            made.append(caption_group(image, words[0], words[1:]))
        else:
            made.append(instruction_group(image, asks))
    return made


def _status(name: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


if __name__ == "__main__":
    main()

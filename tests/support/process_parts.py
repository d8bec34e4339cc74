"""Several processes for a test: each with its rank in the environment as a launcher gives it,
joined by gloo over loopback, and ended if they hang.

What they run must be importable by name in a new process, so it lives in this file.
"""

import contextlib
import io
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.errors import AbcError

TIMEOUT_S = 300.0
"""Processes that are not done by then hang."""

GOLDEN_BASE = str(Path(__file__).parent.parent / "golden" / "base")


@dataclass(frozen=True)
class ProcessResult:
    """What one process returned or how it ended."""

    value: Any = None
    error: str = ""
    """Sentence of the `AbcError` it ended with, or the name of another error."""
    reported_elsewhere: bool = False


def run_processes(
    world_size: int, function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None
) -> list[ProcessResult]:
    """`function(*args)` in several processes at once; the result of each, or the error "gone"."""
    context = multiprocessing.get_context("forkserver")  # imports once, then forks
    context.set_forkserver_preload(["process_parts", "abc_embed.train.loop"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, receivers = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        numbers = (rank, rank, world_size, world_size, port)
        launcher = {name: str(number) for name, number in zip(names, numbers, strict=True)}
        launcher |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        process = context.Process(
            target=_run, args=(launcher | dict(env or {}), sender, function, args), daemon=True
        )
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    try:
        return [_receive(receiver) for receiver in receivers]
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def _receive(receiver: Connection) -> ProcessResult:
    if not receiver.poll(TIMEOUT_S):
        return ProcessResult(error="hangs")
    try:
        return receiver.recv()  # type: ignore[no-any-return]
    except EOFError:
        return ProcessResult(error="gone")


def _run(env: dict[str, str], sender: Connection, function: Any, args: Sequence[Any]) -> None:
    os.environ.update(env)
    import torch

    torch.set_num_threads(1)
    try:
        result = ProcessResult(function(*args))
    except AbcError as error:
        result = ProcessResult(error=str(error), reported_elsewhere=error.reported_elsewhere)
    except BaseException as error:  # noqa: BLE001  (the test looks at it)
        result = ProcessResult(error=f"{type(error).__name__}: {error}")
    sender.send(result)


def command(folder: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """`abc-embed` with arguments, run in `folder`: exit code and what it printed."""
    from abc_embed.cli import run

    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return run(arguments), printed.getvalue()


# -- data and models -------------------------------------------------------------------------------

COLOURS = np.array([[220, 30, 30], [30, 200, 60], [40, 60, 220], [250, 250, 250]], dtype=np.uint8)
NAMES = ("red", "green", "blue", "white")


@dataclass(frozen=True)
class Uneven:
    """Groups that no share of a step has equally many of: 1 to 3 questions an image, captions that
    two images share, texts of many lengths."""

    stage: str
    own_only: bool = False
    """Groups of other processes have an image that cannot be opened."""
    broken: tuple[int, int] = (-1, -1)
    """(step, group) whose image cannot be opened."""
    exit_at: tuple[int, str] = (-1, "")
    """(step, RANK) at which a process is gone without a word."""
    stop_before: int = -1
    """Step at which all are interrupted."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Any]:
        if (step, os.environ.get("RANK", "")) == self.exit_at:
            os._exit(1)
        if step == self.stop_before:
            raise KeyboardInterrupt
        return [self._group(step, i, count) for i in range(count)]

    def _group(self, step: int, i: int, count: int) -> Any:
        from abc_embed.train.batches import caption_group, instruction_group

        k = step * count + i
        top, bottom = k % 4, (k // 4 + 1) % 4
        image: Any = np.empty((56, 28 if k % 3 else 56, 3), dtype=np.uint8)
        image[:28], image[28:] = COLOURS[top], COLOURS[bottom]
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        mine = count * rank // world <= i < count * (rank + 1) // world
        if (self.own_only and not mine) or (step, i) == self.broken:
            image = "no/such/picture.png"
        above, below = NAMES[top], NAMES[bottom]
        if self.stage == "pretrain":
            wrong = [f"{below} on top of {above}" + " again" * (k % 5), "nothing", f"only {below}"]
            return caption_group(image, f"{above} above {below}", wrong[: 1 + k % 3])
        asks = [("what is on top?", above), ("what is below?", f"a {below} one"), ("both?", "two")]
        return instruction_group(image, asks[: 1 + k % 3])


def small_config(stage: str, **train: Any) -> Any:
    from abc_embed.train.config import AdapterConfig, OptimConfig, RunConfig, TrainConfig

    values: dict[str, Any] = {"steps": 5, "batch_size": 5, "checkpoint_every": 5} | train
    dropout = values.pop("dropout", 0.0)
    made = TrainConfig(
        stage=stage,  # type: ignore[arg-type]
        adapter=AdapterConfig(rank=4, alpha=8, dropout=dropout),
        train=RunConfig(**values),
        optim=OptimConfig(learning_rate=1e-3),
    )
    return replace(made, model=replace(made.model, device="cpu"))


def small_model() -> Any:
    from abc_embed import checkpoint

    return checkpoint.load_base(
        GOLDEN_BASE, pixels=(28 * 28, 56 * 56), head_width=96, positions="sequential"
    )


def split_run(config: Any, sampler: Any, out: Path) -> dict[str, Any]:
    """`train_run`, and the share of the model's weights that this process holds while training."""
    from abc_embed.train import stages
    from abc_embed.train.sharding import is_sharded

    kept: list[float] = []
    shard = stages.shard

    def spy(model: Any, device: Any) -> None:
        shard(model, device)
        parameters = dict(model.named_parameters())
        assert [n for n, p in parameters.items() if not is_sharded(p)] == ["temperature.temp"]
        total = sum(p.numel() for p in parameters.values())
        held = sum(p.to_local().numel() for p in parameters.values() if is_sharded(p))
        kept.append(held / total)

    stages.shard = spy
    return train_run(config, sampler, out) | {"held": kept[0]}


def zero_run(config: Any, sampler: Any, out: Path) -> dict[str, Any]:
    """`train_run` under ZeRO, the share of AdamW's means that this process holds at the end, and
    what DeepSpeed left on the weights."""
    from abc_embed.train.zero import ZeroAdamW

    found: dict[str, Any] = {}
    close = ZeroAdamW.close

    def spy(self: Any) -> None:
        parts = [values["exp_avg"].numel() for values in self._adamw.state.values()]
        found["held"] = sum(parts) / sum(p.numel() for p in self._attributes)
        close(self)
        found["left"] = sorted({name for p in self._attributes for name in vars(p)})

    ZeroAdamW.close = spy  # type: ignore[method-assign]
    return train_run(config, sampler, out) | found


def gathered_step(
    mode: Any, parts: Sequence[tuple[Any, Any, Any, list[str]]], tau: float, smoothing: float
) -> dict[str, Any]:
    """One loss over vectors that lie with several processes: `parts` has each one's queries,
    positives, candidates and their names. Loss and the gradients of what this process has."""
    import torch
    from accelerate import Accelerator

    from abc_embed.train.batches import TrainBatch
    from abc_embed.train.losses import contrastive_loss
    from abc_embed.train.processes import BatchInfo, GlobalBatch, ProcessGroup, gather_candidates

    process_group = ProcessGroup(Accelerator(cpu=True))
    query, names_of_positives, own, _ = parts[process_group.rank]
    query, own = torch.tensor(query).requires_grad_(), torch.tensor(own).requires_grad_()
    temperature = torch.nn.Parameter(torch.tensor(tau))
    infos = [
        BatchInfo(dict.fromkeys(names, 1), tuple(("what?", name) for name in positives), 1)
        for _, positives, _, names in parts
    ]
    global_batch = GlobalBatch(TrainBatch((), {}), infos, process_group.rank)
    candidates = gather_candidates(own, global_batch, mode)
    right = torch.tensor([global_batch.numbers[name] for name in names_of_positives])
    loss, accuracy = contrastive_loss(query, candidates, right, temperature, smoothing)
    weight = global_batch.loss_weight
    (loss * weight).backward()
    process_group.average_gradients([temperature])
    found = process_group.mean(torch.stack([loss * weight, accuracy * weight]).detach())
    return {
        "loss": found[0].item(),
        "accuracy": found[1].item(),
        "tau": temperature.grad.item(),  # type: ignore[union-attr]
        # The mean over the processes is what weights get; here nothing is shared to average.
        "query": query.grad.numpy() / process_group.world_size,  # type: ignore[union-attr]
        "own": own.grad.numpy() / process_group.world_size,  # type: ignore[union-attr]
        "candidates": candidates.detach().numpy(),
    }


def train_run(config: Any, sampler: Any, out: Path) -> dict[str, Any]:
    """One run of a stage, as it would be by itself; τ and the trained weights as NumPy arrays."""
    from abc_embed.train.loop import run_stage

    model, processor = small_model()
    trained = run_stage(config, sampler, model, processor, out)
    weights = {name: value.numpy() for name, value in trained.state_dict().items()}
    return {"tau": trained.temperature.value, "weights": weights}


def validated_run(config: Any, out: Path) -> None:
    """A run on `Uneven` groups with the validation that its configuration names."""
    from abc_embed.train.loop import run_stage
    from abc_embed.train.validation import read_validation

    chosen = read_validation(config.validation, config.stage)
    run_stage(config, Uneven(config.stage), *small_model(), out, validation=chosen)


# -- what a run left behind ------------------------------------------------------------------------

EXACT = ("step", "loss", "accuracy", "tau", "grad_norm", "learning_rate", "queries", "candidates")


def values(results: list[ProcessResult]) -> list[Any]:
    assert [result.error for result in results] == [""] * len(results)
    return [result.value for result in results]


def curve(out: Path) -> list[list[float]]:
    from abc_embed.train.metrics_logger import read_metrics

    return [[row[name] for name in EXACT] for row in read_metrics(out / "metrics.jsonl")]


def assert_same_run(together: Path, alone: Path, found: Any, wanted: Any) -> None:
    """Loss within 1e-5 at each of 5 steps, and so each weight and τ after them."""
    import pytest

    assert len(curve(together)) == len(curve(alone)) == 5
    for a, b in zip(curve(together), curve(alone), strict=True):
        assert a[1] == pytest.approx(b[1], abs=1e-5)
        assert a[0] == b[0] and a[2] == pytest.approx(b[2], abs=1e-6) and a[5:] == b[5:]
        assert a[4] == pytest.approx(b[4], rel=1e-4)  # norm of the gradients
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, weight in wanted["weights"].items():
        np.testing.assert_allclose(found["weights"][name], weight, rtol=0, atol=1e-5, err_msg=name)

"""Device, number format, seed, versions: the one place that asks the machine.

torch is imported where it is needed, so that a light command does not pay for it.
"""

import ctypes
import gc
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from abc_embed.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers"),
    *("huggingface_hub", "numpy", "pillow"),
)
"""The packages whose version can change a vector."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Around imports: they make many objects and hardly any garbage.

    Of the time that torch and transformers take to import, the collector takes a seventh.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def resolve_device(device: "str | torch.device" = "auto") -> "torch.device":
    """The device to compute on; `auto` is cuda, else mps, else cpu.

    Raises:
        UsageError: no such name.
        DeviceError: this machine, or this build of torch, does not have it.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = torch.device("meta")
    if chosen.type == "cuda":
        _check_cuda(chosen)
    elif chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("this machine has no mps device; use device='cpu' or 'auto'")
    elif chosen.type != "cpu":
        raise UsageError(f"device is {str(device)!r}; use auto, cpu, cuda, cuda:N or mps")
    return chosen


def _check_cuda(chosen: "torch.device") -> None:
    import torch

    if not torch.cuda.is_available():
        built_with = torch.version.cuda or torch.version.hip
        why = "no CUDA device is found" if built_with else "this torch is built without CUDA"
        raise DeviceError(f"{why}; use device='cpu', or install a torch with CUDA on a GPU machine")
    count = torch.cuda.device_count()
    if (chosen.index or 0) >= count:
        raise DeviceError(
            f"there is no {chosen}; this machine has {count} CUDA device(s), counted from 0"
        )


def resolve_dtype(
    dtype: "str | torch.dtype" = "auto", device: "str | torch.device" = "cpu"
) -> "torch.dtype":
    """The number format of the weights; `auto` is float32 on a CPU, bfloat16 where it is fast.

    `auto` never means float16: Qwen2-VL was trained in bfloat16 and can overflow in it.

    Raises:
        UsageError: no such name.
        DeviceError: the device does not have it.
    """
    import torch

    on = resolve_device(device)
    has_bfloat16 = on.type == "cpu" or (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if on.type == "cuda"
        else torch.backends.mps.is_macos_or_newer(14, 0)
    )
    if dtype == "auto":
        return torch.bfloat16 if on.type != "cpu" and has_bfloat16 else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"dtype is {name!r}; use auto, {', '.join(DTYPES)}")
    if name == "bfloat16" and not has_bfloat16:
        raise DeviceError(f"{on} cannot compute in bfloat16; use dtype='float32' or 'float16'")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def check_compiler(device: "torch.device") -> None:
    """Compile something small, which says more than looking for a compiler.

    Raises:
        DeviceError: torch.compile cannot be had on this machine.
    """
    import torch

    def small(x: "torch.Tensor") -> "torch.Tensor":
        return x.sin() + 1

    try:
        torch.compile(small, dynamic=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever ails a compiler
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and g++"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeviceError(
            f"nothing can be compiled for {device} ({reason}); install {needed}, or do without "
            "compile"
        ) from error


def to_device(tensor: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """A tensor on a device; a copy to a GPU goes through pinned memory, and nobody waits for it."""
    import torch

    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def from_device(tensor: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Have a tensor copied to the CPU as soon as it is computed; the result waits for that alone.

    `Tensor.cpu` would wait for whatever the device was given afterwards, too.
    """
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return copy

    return wait


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of every package that can change a vector."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"abc-embed": _own_version(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _own_version() -> str:
    from abc_embed import __version__

    return __version__


def hardware() -> dict[str, Any]:
    """What this machine computes with: processors, memory and devices; sizes in bytes."""
    import torch

    gpus = [
        {"name": gpu.name, "memory_bytes": int(gpu.total_memory)}
        for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "cpus": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "cuda": gpus,
        "mps": torch.backends.mps.is_available(),
    }


PRODUCT = (128, 1536, 8960)
"""Rows, width and inner width of the product that `product_times_s` measures: half a feed-forward
layer of the 2B shape."""


def product_times_s(
    threads: Sequence[int], *, budget_s: float = 1.0
) -> dict[tuple[str, int], float]:
    """Seconds of one matrix product on the CPU, by number format and threads: the least of several.

    They take turns until `budget_s` is spent, twice at least; torch keeps its threads afterwards.
    """
    import torch

    rows, width, inner = PRODUCT
    pairs = {}
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        pairs[name] = (torch.ones(rows, width, dtype=dtype), torch.ones(inner, width, dtype=dtype))
    times: dict[tuple[str, int], float] = {}
    before = torch.get_num_threads()
    started, rounds = time.perf_counter(), 0
    try:
        while rounds < 2 or time.perf_counter() - started < budget_s:
            for count in threads:
                torch.set_num_threads(count)
                for name, (inputs, weights) in pairs.items():
                    begun = time.perf_counter()
                    torch.nn.functional.linear(inputs, weights)
                    seconds = time.perf_counter() - begun
                    times[name, count] = min(seconds, times.get((name, count), seconds))
            rounds += 1
    finally:
        torch.set_num_threads(before)
    return times


def _memory_bytes() -> int | None:
    """The machine's main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory_bytes(device: "torch.device") -> int:
    """Memory that nobody uses on a device; 0 where the system does not say."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        with suppress(AttributeError, ValueError, OSError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return 0


def resident_bytes() -> int:
    """Main memory that this process has now; 0 where the system does not say."""
    return _status_bytes("VmRSS")


def peak_bytes(device: "torch.device") -> int:
    """The most memory since `reset_peak`: allocated on a GPU, else of the whole process.

    0 where the system does not say.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status_bytes("VmHWM")


def reset_peak(device: "torch.device") -> None:
    """Count the peak from now on; on a CPU where the system lets a process do so, as Linux."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    """A line of what Linux says of a process, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def in_own_thread(work: Callable[[], T]) -> T:
    """What `work` returns, computed in a thread that ends with it.

    Each thread that computes with torch on a CPU has helpers of OpenMP, which stay as long as it
    does. With more of them in a process than cores, even idle ones, none waits actively for the
    next operation any more, and the same work takes half as long again, or twice.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="abc-embed-once") as thread:
        return thread.submit(work).result()


def trim_memory() -> None:
    """Give back what was freed: glibc keeps it, torn in pieces, in an arena of each thread.

    Takes milliseconds; nothing happens with another C library.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def synchronize(device: "torch.device") -> None:
    """Wait until a device has computed what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _processor_name() -> str:
    """The processor as the system calls it; empty where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return ""

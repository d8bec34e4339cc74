"""`abc-embed doctor`: what works here, what is missing, and how to get it.

Nothing is fetched or changed, but for a model that --model names.
"""

import importlib.metadata
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from abc_embed import runtime
from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog
from abc_embed.cli.quickstart import QUESTIONS, example_picture
from abc_embed.errors import AbcError
from abc_embed.inputs import Item

EXAMPLES = epilog("""
  abc-embed doctor
  abc-embed doctor --model runs/mine --json
""")

PUBLISHED_GB = 17
"""Size of the published model's base and adapters, on disk and in memory as bfloat16."""
HELPS = 0.9
"""A share of the time, or less, is worth another option."""
_YES_NO = {True: "yes", False: "no"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    good: bool
    found: str
    mend: str = ""
    """How to get what is missing."""
    needed: bool = False
    """Whether nothing works without it."""


def doctor(
    *,
    settings: options.ModelSettings,
    printer: Printer,
) -> None:
    """Look at this installation and try the model.

    Exits with 1 if something is missing that every command needs, or the model does not work.
    """
    versions = runtime.versions()
    missing = [name for name, version in versions.items() if version == "missing"]
    if not missing:
        settings.check()  # a name that is mistyped is no fault of the installation
    hardware = {} if versions["torch"] == "missing" else runtime.hardware()
    packages = _packages_check("packages", missing, "pip install abc-embed", needed=True)
    checks = [packages, _trial(settings)]
    if packages.good:
        checks += [*_published(), _memory(hardware)]
        if not hardware["cuda"] and not hardware["mps"]:
            threads = int(hardware["torch_threads"])
            counts = sorted({1, max(1, threads // 2), threads})
            checks.append(_speed(runtime.product_times_s(counts), threads))
    for extra, names in extras().items():
        missing = [name for name in names if not _is_installed(name)]
        mend = f"pip install 'abc-embed[{extra}]'"
        checks.append(_packages_check(f"extra {extra}", missing, mend))
    healthy = all(check.good or not check.needed for check in checks)
    facts = {"versions": versions, "hardware": hardware}
    printer.json({**facts, "checks": [asdict(check) for check in checks], "healthy": healthy})
    printer.table(("version", ""), list(versions.items()))
    printer.table(("machine", ""), _machine_rows(hardware))
    printer.table(("works", "what", "found"), [(_YES_NO[c.good], c.name, c.found) for c in checks])
    if mends := [f"  {c.name}: {c.mend}" for c in checks if c.mend]:
        printer.line("\n".join(["How to get what is missing:", *mends, ""]))  # not broken
    printer.line(
        "All that is needed is here." if healthy else "Something that is needed is missing."
    )
    if not healthy:
        raise typer.Exit(1)


def _packages_check(name: str, missing: list[str], mend: str, *, needed: bool = False) -> Check:
    if missing:
        return Check(name, False, f"without {', '.join(missing)}", mend, needed)
    return Check(name, True, "all there", needed=needed)


def _machine_rows(hardware: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in hardware.items():
        if name == "cuda":
            for index, gpu in enumerate(value):
                rows.append((f"cuda:{index}", f"{gpu['name']}, {_size(gpu['memory_bytes'])}"))
            if not value:
                rows.append(("cuda", "no"))
        elif name == "memory_bytes":
            rows.append(("memory", "unknown" if value is None else _size(value)))
        else:
            text = _YES_NO[value] if isinstance(value, bool) else str(value)
            rows.append((name.replace("_", " "), text))
    return rows


def _trial(settings: options.ModelSettings) -> Check:
    """Load the model and embed with it."""
    name = f"model {settings.model}"
    started = time.perf_counter()
    try:
        embedder = settings.load()
        embedder.embed(["a dog", Item(image=example_picture(), instruction=next(iter(QUESTIONS)))])
    except (AbcError, ImportError) as error:
        return Check(name, False, "does not work", str(error), needed=True)
    seconds = time.perf_counter() - started
    dtype = str(embedder.model.dtype).removeprefix("torch.")
    found = f"{embedder.dim} numbers, {dtype} on {embedder.model.device}"
    return Check(name, True, f"{found}, first answer after {seconds:.1f} s", needed=True)


def _published() -> list[Check]:
    """Which parts of the published model lie in the cache of the Hugging Face hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from abc_embed.hub import ADAPTER_FILES, BASE_FILES, PUBLISHED, is_cached

    files: dict[str | None, tuple[str, ...]] = {}
    for recipe in PUBLISHED.values():
        for name in (recipe.base, recipe.pretrain, recipe.instruct):
            files.setdefault(name, BASE_FILES if name == recipe.base else ADAPTER_FILES)
    checks: list[Check] = []
    for name, needed in files.items():
        if name is not None:
            here = is_cached(name, needed)
            mend = "" if here else "fetched when a published model is first used, with a network"
            checks.append(Check(name, here, "fetched" if here else "not fetched", mend))
    folder = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if p.exists())
    free = shutil.disk_usage(folder).free
    fits = all(check.good for check in checks) or free >= PUBLISHED_GB * 10**9
    mend = "" if fits else f"it takes {PUBLISHED_GB} GB; set HF_HOME to a larger disk"
    return [*checks, Check("room for the published model", fits, f"{_size(free)} free", mend)]


def _memory(hardware: dict[str, Any]) -> Check:
    """Whether the published model fits: on a GPU as bfloat16, on a CPU as float32 unless told."""
    gpus = [int(gpu["memory_bytes"]) for gpu in hardware["cuda"]]
    most = max(gpus, default=hardware["memory_bytes"] or 0)
    needed = PUBLISHED_GB * (1 if gpus else 2)
    name = "memory for the published model"
    found = f"{_size(most)} on the {'GPU' if gpus else 'CPU'}"
    if most >= needed * 10**9:
        return Check(name, True, found)
    mend = f"it takes {needed} GB"
    mend += "" if gpus else f"; {PUBLISHED_GB} GB with --dtype bfloat16, which is slow on a CPU"
    return Check(name, False, found, mend)


def _speed(times_s: dict[tuple[str, int], float], threads: int) -> Check:
    """Whether bfloat16, or fewer threads than torch takes, would make a CPU faster."""
    plain = times_s["float32", threads]
    bfloat16 = times_s["bfloat16", threads] / plain
    fewer, count = min(
        (seconds / plain, count) for (name, count), seconds in times_s.items() if name == "float32"
    )
    found = f"bfloat16 takes {bfloat16:.2f} of the time of float32"
    advice = ["--dtype bfloat16"] if bfloat16 <= HELPS else []
    if fewer <= HELPS:
        found += f", {count} of {threads} threads {fewer:.2f}"
        advice.append(f"OMP_NUM_THREADS={count}")
    found += f"; faster with {' and '.join(advice)}" if advice else "; as it is, it is fastest"
    return Check("speed of a large product", True, found)


def extras() -> dict[str, list[str]]:
    """Each extra of this package and what it installs, as the package's metadata say.

    The development tools are left out: no code of the package needs them.
    """
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("abc-embed") or []:
        match = re.fullmatch(r"([\w.-]+).*; extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] != "dev":
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB"

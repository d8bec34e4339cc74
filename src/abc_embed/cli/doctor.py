"""`abc-embed doctor`: what works here, what is missing, and how to get it.

Does: look at packages, devices, memory and model files, and try the model on a text and a picture.
Does not: fetch or change anything, but a model that --model names.
"""

import importlib.util
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import show, show_json, show_table
from abc_embed.errors import AbcError

EXAMPLES = """\
Examples:

\b
  abc-embed doctor
  abc-embed doctor --model runs/mine --json
"""

EXTRAS = {
    "mine": ("faiss", "pyarrow"),
    "bench": ("matplotlib", "mteb", "sentence_transformers"),
    "index": ("lancedb",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "scale": ("ray",),
}
"""Extra -> what it makes importable."""

PUBLISHED_GB = 17
"""Size of the published model's base and adapters, on disk and in memory as bfloat16."""


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
    model: options.Model = options.MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Look at this installation and try the model.

    Exits with 1 if something is missing that every command needs, or the model does not work.
    """
    facts = _facts()
    checks = [*_packages(facts["versions"]), _trial(model, device, dtype)]
    if checks[0].good:
        checks += [*_published(), _memory(facts["hardware"])]
    checks += _extras()
    healthy = all(check.good or not check.needed for check in checks)
    if as_json:
        listed = [
            {"name": c.name, "good": c.good, "found": c.found, "mend": c.mend, "needed": c.needed}
            for c in checks
        ]
        show_json({**facts, "checks": listed, "healthy": healthy})
    else:
        show_table(("version", ""), list(facts["versions"].items()))
        show_table(("machine", ""), _machine_rows(facts["hardware"]))
        rows = [(_YES_NO[c.good], c.name, c.found, c.mend) for c in checks]
        show_table(("works", "what", "found", "how to get it"), rows)
        show("All that is needed is here." if healthy else "Something that is needed is missing.")
    if not healthy:
        raise typer.Exit(1)


def _facts() -> dict[str, Any]:
    from abc_embed import runtime

    versions = runtime.versions()
    missing = versions["torch"] == "missing"
    return {"versions": versions, "hardware": {} if missing else runtime.hardware()}


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
            shown = _YES_NO[value] if isinstance(value, bool) else str(value)
            rows.append((name.replace("_", " "), shown))
    return rows


def _packages(versions: dict[str, str]) -> list[Check]:
    missing = [name for name, version in versions.items() if version == "missing"]
    if missing:
        lost = ", ".join(missing)
        return [Check("packages", False, f"without {lost}", "pip install abc-embed", needed=True)]
    return [Check("packages", True, "all there", needed=True)]


def _trial(name: str, device: str, dtype: str) -> Check:
    """Load the model and embed with it."""
    started = time.perf_counter()
    try:
        from abc_embed.cli.quickstart import QUESTIONS, example_picture
        from abc_embed.inputs import Item

        loaded = options.load(name, device=device, dtype=dtype)
        asked = Item(image=example_picture(), instruction=next(iter(QUESTIONS)))
        loaded.embedder.embed(["a dog", asked])
    except (AbcError, ImportError) as error:
        return Check(f"model {name}", False, "does not work", str(error), needed=True)
    model = loaded.embedder.model
    seconds = time.perf_counter() - started
    what = f"{loaded.embedder.dim} numbers, {str(model.dtype).removeprefix('torch.')}"
    found = f"{what} on {model.device}, first answer after {seconds:.1f} s"
    return Check(f"model {name}", True, found, needed=True)


def _published() -> list[Check]:
    """Which parts of the published model lie in the cache of the Hugging Face hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from abc_embed.hub import ADAPTER_FILES, BASE_FILES, PUBLISHED

    checks: list[Check] = []
    seen: set[str] = set()
    for recipe in PUBLISHED.values():
        for name in (recipe.base, recipe.pretrain, recipe.instruct):
            if name is None or name in seen:
                continue
            seen.add(name)
            here = _is_cached(name, BASE_FILES if name == recipe.base else ADAPTER_FILES)
            mend = "" if here else "fetched when a published model is first used, with a network"
            checks.append(Check(name, here, "fetched" if here else "not fetched", mend))
    folder = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if p.exists())
    free = shutil.disk_usage(folder).free
    needed = PUBLISHED_GB * 10**9
    if all(check.good for check in checks) or free >= needed:
        return [*checks, Check("room for the published model", True, f"{_size(free)} free")]
    mend = f"it takes {PUBLISHED_GB} GB; set HF_HOME to a larger disk"
    return [*checks, Check("room for the published model", False, f"{_size(free)} free", mend)]


def _memory(hardware: dict[str, Any]) -> Check:
    """Whether the published model fits: on a GPU as bfloat16, on a CPU as float32 unless told."""
    gpus = [int(gpu["memory_bytes"]) for gpu in hardware["cuda"]]
    most = max(gpus, default=hardware["memory_bytes"] or 0)
    needed = PUBLISHED_GB * (1 if gpus else 2)
    name, found = (
        "memory for the published model",
        f"{_size(most)} on the {'GPU' if gpus else 'CPU'}",
    )
    if most >= needed * 10**9:
        return Check(name, True, found)
    mend = f"it takes {needed} GB"
    mend += "" if gpus else f"; {PUBLISHED_GB} GB with --dtype bfloat16, which is slow on a CPU"
    return Check(name, False, found, mend)


def _is_cached(repository: str, patterns: tuple[str, ...]) -> bool:
    """Whether the weights are there; a fetch that was broken off leaves out the last ones."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    index = Path(folder, "model.safetensors.index.json")
    if not index.exists():
        return any(Path(folder).glob("*.safetensors"))
    wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(Path(folder, name).exists() for name in wanted)


def _extras() -> list[Check]:
    checks = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        found = "all there" if not missing else f"without {', '.join(missing)}"
        mend = f"pip install 'abc-embed[{extra}]'" if missing else ""
        checks.append(Check(f"extra {extra}", not missing, found, mend))
    return checks


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB"

"""`abc-embed doctor`: what works here, what is missing, and how to get it.

Nothing is fetched or changed, but for a model that --model names.
"""

import importlib.metadata
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import print_json, print_result, print_table
from abc_embed.errors import AbcError

EXAMPLES = """\
Examples:

\b
  abc-embed doctor
  abc-embed doctor --model runs/mine --json
"""

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


@options.with_settings
def doctor(
    *,
    settings: options.ModelSettings,
    as_json: options.AsJson = False,
) -> None:
    """Look at this installation and try the model.

    Exits with 1 if something is missing that every command needs, or the model does not work.
    """
    facts = _facts()
    checks = [*_packages(facts["versions"]), _trial(settings)]
    if checks[0].good:
        checks += [*_published(), _memory(facts["hardware"])]
    checks += _extras()
    healthy = all(check.good or not check.needed for check in checks)
    if as_json:
        listed = [
            {"name": c.name, "good": c.good, "found": c.found, "mend": c.mend, "needed": c.needed}
            for c in checks
        ]
        print_json({**facts, "checks": listed, "healthy": healthy})
    else:
        print_table(("version", ""), list(facts["versions"].items()))
        print_table(("machine", ""), _machine_rows(facts["hardware"]))
        rows = [(_YES_NO[c.good], c.name, c.found, c.mend) for c in checks]
        print_table(("works", "what", "found", "how to get it"), rows)
        print_result(
            "All that is needed is here." if healthy else "Something that is needed is missing."
        )
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


def _trial(settings: options.ModelSettings) -> Check:
    """Load the model and embed with it."""
    name = f"model {settings.model}"
    started = time.perf_counter()
    try:
        from abc_embed.cli.quickstart import QUESTIONS, example_picture
        from abc_embed.inputs import Item

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
    for extra, packages in extras().items():
        missing = [name for name in packages if not _is_installed(name)]
        found = "all there" if not missing else f"without {', '.join(missing)}"
        mend = f"pip install 'abc-embed[{extra}]'" if missing else ""
        checks.append(Check(f"extra {extra}", not missing, found, mend))
    return checks


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

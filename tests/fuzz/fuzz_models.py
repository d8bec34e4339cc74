"""Damaged and hostile model folders: loaded and used, or refused in one sentence."""

import json
import random
import shutil
from pathlib import Path

import golden_parts
from fuzzing import Report, mutate, mutate_json

from abc_embed import Embedder, checkpoint
from abc_embed.errors import AbcError, CheckpointError

ITEMS = [golden_parts.small(), golden_parts.small("left?", size=(28, 28)), "a dog"]
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 6000000000 }}",
    "{% set ns = namespace(s='ab') %}" + "{% set ns.s = ns.s ~ ns.s %}" * 60,
)


def fuzz_models(count: int, seed: int, scratch: Path) -> Report:
    """Change one file of a folder of ours, `count` times; each is loaded and embeds."""
    rng, report = random.Random(seed), Report("model folders")
    source = scratch / "source"
    checkpoint.save(*golden_parts.shared(), source)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix in (".json", ".jinja", ".safetensors")]
    for number in range(count):
        folder, changed = scratch / "case", rng.choice(files)
        shutil.rmtree(folder, ignore_errors=True)
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if path != changed:
                (folder / path).symlink_to(source / path)
        how = _damage(source / changed, folder / changed, rng)
        report.run(f"{number} {changed} {how}", lambda folder=folder: _use(folder))
    return report


def _damage(source: Path, target: Path, rng: random.Random) -> str:
    way = rng.random()
    if way < 0.03:
        return "left out"
    if way < 0.06:
        target.mkdir()
        return "a folder"
    if source.suffix == ".jinja" and way < 0.3:
        target.write_text(rng.choice(TEMPLATES))
        return "hostile"
    if source.suffix == ".json" and way < 0.8:
        text = mutate_json(source.read_text(), rng)
        target.write_text(text)
        before, after = json.loads(source.read_text()), json.loads(text)
        keys = [key for key in before if repr(after.get(key)) != repr(before[key])]
        return f"{keys[:1]} = {str(after.get(keys[0]))[:60] if keys else ''}"
    data = source.read_bytes()
    if source.suffix == ".safetensors" and way < 0.7:  # the header, where the structure is
        size = 8 + int.from_bytes(data[:8], "little")
        target.write_bytes(mutate(data[:size], rng) + data[size:])
        return "its header"
    target.write_bytes(mutate(data, rng))
    return "its bytes"


def _use(folder: Path) -> None:
    """Whatever is wrong must be said by loading; only weights that are no numbers, by embedding."""
    embedder = Embedder.from_pretrained(folder, device="cpu")
    try:
        embedder.embed(ITEMS, max_pixels=50 * 28 * 28)
    except CheckpointError as error:
        raise RuntimeError(f"said only when embedding: {error}") from error
    except AbcError:
        raise

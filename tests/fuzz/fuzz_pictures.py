"""Damaged pictures in all formats and modes that this Pillow writes: opened, or refused."""

import functools
import io
import random
import warnings

import numpy as np
from fuzzing import Report, mutate
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.inputs import open_image

TOGETHER = 50
"""Pictures in one call of `embed`."""
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
OPTIONS: dict[str, list[dict[str, object]]] = {
    "TIFF": [{"compression": name} for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits")],
    "WEBP": [{}, {"lossless": True}],
    "JPEG": [{}, {"progressive": True}],
    "GIF": [{}, {"save_all": True}],
    "PNG": [{}, {"save_all": True}],
}


@functools.cache
def pictures() -> list[tuple[str, bytes]]:
    """(format and mode, bytes) of a small picture, as many as there are."""
    Image.init()
    values = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    made = []
    for kind in sorted(set(Image.SAVE) - {"PDF", "EPS", "PALM", "HDF5", "GRIB", "BUFR", "WMF"}):
        for mode in MODES:
            for options in OPTIONS.get(kind, [{}]):
                out = io.BytesIO()
                try:
                    picture = Image.fromarray(values).convert(mode)
                    picture.save(out, kind, **options)
                except Exception:  # noqa: BLE001  (this format does not have this mode)
                    continue
                made.append((f"{kind} {mode} {options or ''}".strip(), out.getvalue()))
    return made


def fuzz_pictures(count: int, seed: int) -> Report:
    """`count` damaged pictures, all formats and modes in turn; opened, then embedded together."""
    rng, made = random.Random(seed), pictures()
    report = Report(f"pictures, {len(made)} formats and modes")
    embedder = Embedder.from_pretrained("bundled", device="cpu")
    embedder.embed([Item(image=made[0][1])] * TOGETHER)  # what a batch takes is the model's
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none may come through
        for first in range(0, count, TOGETHER):
            damaged, read_before = [], report.read
            for number in range(first, min(first + TOGETHER, count)):
                name, data = made[number % len(made)]
                damaged.append(mutate(data, rng))
                report.run(f"{number} {name}", lambda data=damaged[-1]: open_image(data))
            readable = report.read - read_before
            report.run(f"{first} embed", lambda d=damaged, r=readable: _embed(embedder, d, r))
    return report


def _embed(embedder: Embedder, pictures: list[bytes], readable: int) -> None:
    """Every picture gets a vector or is among the skipped; those that open get a vector."""
    vectors, skipped = embedder.embed([Item(image=data) for data in pictures], on_error="skip")
    if len(vectors) != len(pictures) - len(skipped):
        raise RuntimeError(f"{len(pictures)} in, {len(vectors)} vectors, {len(skipped)} skipped")
    if len(vectors) > readable:
        raise RuntimeError(f"{readable} can be opened, {len(vectors)} were embedded")

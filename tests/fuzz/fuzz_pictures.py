"""Damaged pictures in all formats and modes that this Pillow writes: opened, or refused."""

import functools
import io
import random
import warnings

import numpy as np
from fuzzing import Report, mutate
from PIL import Image

from abc_embed.inputs import open_image

DECODE_LIMIT = 1_000_000
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
    """`count` damaged pictures, all formats and modes in turn."""
    rng, made = random.Random(seed), pictures()
    report = Report(f"pictures, {len(made)} formats and modes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none may come through
        for number in range(count):
            name, data = made[number % len(made)]
            damaged = mutate(data, rng)
            report.run(
                f"{number} {name}",
                lambda data=damaged: open_image(data, decode_limit=DECODE_LIMIT),
            )
    return report

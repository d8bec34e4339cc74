"""Vectors as they are stored, measured: cut, rounded, of unit length, named for what they are."""

import numpy as np
import pytest

from abc_embed.bench.encoders.wrapped import FormattedEncoder, RandomEncoder
from abc_embed.errors import UsageError
from abc_embed.vectors import VectorFacts, quantize, truncate

TEXTS = [f"text {number}" for number in range(40)]


@pytest.mark.parametrize(
    ("dim", "output", "size"),
    [(None, "float32", 256), (32, "float16", 64), (16, "int8", 16), (20, "binary", 3)],
)
def test_cut_and_rounded(dim: int | None, output: str, size: int) -> None:
    inner = RandomEncoder(64)
    encoder = FormattedEncoder(inner, dim, output)
    vectors, plain = encoder.embed(TEXTS), truncate(inner.embed(TEXTS), dim)
    assert encoder.bytes_per_vector == size
    assert vectors.shape == plain.shape
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-6
    cosines = (vectors * plain).sum(1)
    assert cosines.min() > (0.5 if output == "binary" else 0.999)
    assert encoder.fingerprint != inner.fingerprint
    assert encoder.describe()["config"]["vectors"]["bytes"] == size


def test_the_models_own_ranges_come_first() -> None:
    inner = RandomEncoder(16)
    ranges = np.stack([np.full(16, -0.1), np.full(16, 0.1)]).astype(np.float32)
    encoder = FormattedEncoder(inner, None, "uint8", VectorFacts(ranges={16: ranges}))
    levels = quantize(inner.embed(TEXTS), "uint8", ranges)
    assert (levels == 255).any()  # cut off, as it would be in storage
    expected = -0.1 + 0.2 / 255 * (levels + 0.5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(encoder.embed(TEXTS) - expected).max() <= 1e-5


def test_what_cannot_be_is_said_before_anything_is_embedded() -> None:
    with pytest.raises(UsageError, match="give 1 to 16"):
        FormattedEncoder(RandomEncoder(16), 17, "float32")
    with pytest.raises(UsageError, match="use one of"):
        FormattedEncoder(RandomEncoder(16), None, "int4")

"""Pictures unlike those that a model knows: told by distance, said once, and not by chance."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from abc_embed import Embedder, Item
from abc_embed.errors import CheckpointError, UsageError
from abc_embed.novelty import KnownPictures, NoveltyNotice
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.render import render
from abc_embed.vectors import VectorFacts


def features(seed: int, count: int, shift: float = 0.0) -> NDArray[np.float64]:
    """`(count, 40)` around one mean, wide in three directions."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=(count, 3)) @ np.eye(40)[:3] * 10
    values: NDArray[np.float64] = 5 + wide + rng.normal(size=(count, 40))
    values[:, -1] += shift
    return values


def test_the_limit_is_that_of_known_pictures() -> None:
    known = KnownPictures.of(features(0, 400))
    within = known.distances(features(1, 2000)) <= known.limit
    assert 0.98 <= within.mean() <= 1.0  # 0.995 is aimed at, from 400 pictures
    assert 0.8 <= np.median(known.distances(features(1, 2000))) <= 1.2
    assert (known.distances(features(2, 200, shift=20)) > known.limit).all()
    with pytest.raises(UsageError, match="too few"):
        KnownPictures.of(features(0, 99))
    with pytest.raises(UsageError, match="all the same"):
        KnownPictures.of(np.ones((200, 40)))


def test_it_is_said_once_and_not_by_chance(caplog: pytest.LogCaptureFixture) -> None:
    known = KnownPictures.of(features(0, 200))
    notice = NoveltyNotice()
    notice.look(np.full(100, 1.0), known)
    notice.look(np.array([99.0] * 9), known)  # 9 of 109
    assert not caplog.records
    for _ in range(3):
        notice.look(np.array([99.0] * 9), known)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    alone = NoveltyNotice()
    alone.look(np.array([99.0]), known)
    assert alone.given and "1 of 1 pictures" in caplog.text


@pytest.fixture(scope="module")
def bundled() -> Embedder:
    """The bundled model, which knows a hundred scenes."""
    model = Embedder.from_pretrained("bundled", device="cpu")
    known = model.pipeline().known_pictures(Item(image=scene(number)) for number in range(100))
    model.model.vector_facts = replace(model.model.vector_facts, known=known)
    return model


def scene(number: int) -> NDArray[np.uint8]:
    return np.asarray(render(make_scene(3, number), 128))


def texture(seed: int) -> NDArray[np.uint8]:
    """Noise whose power falls with frequency as a photograph's does, in colours of its own."""
    rng, side = np.random.default_rng(seed), 128
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    spectra = np.fft.fft2(rng.normal(size=(3, side, side))) / frequency
    planes = np.fft.ifft2(spectra).real
    planes = 128 + 45 * planes / planes.std(axis=(1, 2), keepdims=True)
    return planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def test_textures_are_said_and_scenes_are_not(
    bundled: Embedder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    scenes = [Item(image=scene(number)) for number in range(200, 240)]
    before = bundled.embed(scenes)
    assert not caplog.records
    bundled.save(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model", device="cpu")
    assert np.array_equal(again.embed(scenes), before)  # to look changes no vector
    textures = [Item(image=texture(seed)) for seed in range(20)]
    known = again.model.vector_facts.known
    assert known is not None
    distances = known.distances(again.pipeline().picture_features(textures))
    assert (distances > known.limit).mean() >= 0.9
    again.embed(textures[0], max_pixels=224 * 224)  # unlike for its size alone
    assert not caplog.records
    again.embed([textures[0], textures[1]])
    again.embed(textures)
    assert len(caplog.records) == 1 and "knows photos" in caplog.text


def test_damaged_facts_are_refused(bundled: Embedder, tmp_path: Path) -> None:
    bundled.save(tmp_path / "model")
    path = tmp_path / "model" / "vectors.json"
    text = path.read_text()
    for old, new in (
        ('"limit": ', '"limit": -'),
        ('"mean": "', '"mean": "AAAA'),
        ('"axes"', '"x"'),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match="known_pictures"):
            Embedder.from_pretrained(tmp_path / "model", device="cpu")


def test_the_facts_go_with_what_is_known_of_vectors(bundled: Embedder) -> None:
    """Training puts new facts in their place, so that a trained model does not know by them."""
    assert bundled.model.vector_facts != VectorFacts()
    bundled.calibrate([Item(image=scene(number)) for number in range(5)])
    assert bundled.model.vector_facts.known is not None

"""Encoders that cheat, each in one way, so that every number of a record can be foreseen."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from abc_embed.bench.held_out import HeldOut, build
from abc_embed.inputs import Item
from abc_embed.scenes import BACKGROUNDS, make_scene, questions, render
from abc_embed.scenes.layout import Scene

SMALL: dict[str, Any] = {"queries": 60, "pairs": 10, "seed": 9000}
SIDE = 56
WORDS_FOR_GROUND = next(
    (q.instruction, *q.paraphrases) for q in questions(make_scene(1, 0)) if q.region is None
)


def ground(colour: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} background"


class Fake:
    """Knows every scene by its pixels. Counts what it is asked."""

    width = 512

    def __init__(self, held: HeldOut) -> None:
        self.scenes: dict[bytes, Scene] = {}
        for scene in held.scenes:
            for each in (scene, scene.mirrored()):
                self.scenes[render(each, SIDE).tobytes()] = each
        self.calls: list[list[Item | str]] = []
        self.options: list[tuple[int | None, int]] = []

    def embed(
        self, items: Iterable[str | Item], *, max_pixels: int | None = None, batch_size: int = 32
    ) -> np.ndarray:
        self.calls.append(list(items))
        self.options.append((max_pixels, batch_size))
        return np.stack([self.vector(item) for item in self.calls[-1]]).astype(np.float32)

    def vector(self, item: str | Item) -> np.ndarray:
        if isinstance(item, str):
            return self.text(item)
        assert item.image is not None
        scene = self.scenes[item.image.tobytes()]  # type: ignore[union-attr]
        return self.shown(scene, item.instruction)

    def text(self, text: str) -> np.ndarray:
        """Another direction for every text, nearly at right angles."""
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        vector = np.random.default_rng(seed).standard_normal(self.width)
        return vector / np.linalg.norm(vector)

    def picture(self, scene: Scene) -> np.ndarray:
        """What is seen, the largest thing most, the ground nearly as much."""
        things = sorted(scene.placed, key=lambda p: -p.size)
        seen = [self.text(p.thing.phrase) / (1 + rank) for rank, p in enumerate(things)]
        vector = np.sum([*seen, 0.9 * self.text(ground(scene.background))], axis=0)
        return np.asarray(vector / np.linalg.norm(vector))

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        raise NotImplementedError


class Oracle(Fake):
    """Understands every instruction."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        for question in questions(scene):
            if instruction in (question.instruction, *question.paraphrases):
                return self.text(question.answer)
        assert instruction is None, f"nobody could answer {instruction!r}"
        return self.picture(scene)


class LateFusion(Fake):
    """Adds what it sees to what it reads. Knows what a background is: it need not see for that."""

    def text(self, text: str) -> np.ndarray:
        if text in WORDS_FOR_GROUND:
            vector = np.sum([super(LateFusion, self).text(ground(c)) for c in BACKGROUNDS], axis=0)
            return np.asarray(vector / np.linalg.norm(vector))
        return super().text(text)

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        if instruction is None:
            return self.picture(scene)
        return self.picture(scene) + self.text(instruction)


class Blind(Fake):
    """Sees nothing but the picture's largest thing; instructions change nothing."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        return self.picture(scene)


class Constant(Fake):
    """One vector for everything."""

    def vector(self, item: str | Item) -> np.ndarray:
        return np.full(8, 8**-0.5)


class Broken(Oracle):
    """One picture overflows."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        vector = super().shown(scene, instruction)
        return vector * np.nan if instruction and len(scene.placed) == 4 else vector


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Arguments of a small benchmark."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def held() -> HeldOut:
    return build(**SMALL)


@pytest.fixture
def fake(held: HeldOut) -> Any:
    """Makes a fake by its name."""
    kinds = {kind.__name__: kind for kind in (Oracle, LateFusion, Blind, Constant, Broken)}
    return lambda name: kinds[name](held)

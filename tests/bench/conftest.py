"""Small benchmarks of every tier, and encoders that cheat, each in one way."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_embed.bench.ctrlbench import binding, grid, unseen_scenes
from abc_embed.bench.ctrlbench.scene_benchmark import SceneBenchmark, write_scene_benchmark
from abc_embed.bench.ctrlbench.schema import Benchmark
from abc_embed.bench.encoders.base import Encoder
from abc_embed.inputs import Item, Kind
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import questions
from abc_embed.scenes.things import BACKGROUNDS

SMALL: dict[str, Any] = {"count": 60, "pairs": 10, "seed": 9000}
SIDE = 56
WORDS_FOR_GROUND = next(
    (q.instruction, *q.paraphrases) for q in questions(make_scene(1, 0)) if q.region is None
)


def ground(colour: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} background"


@cache
def _direction(text: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    vector = np.random.default_rng(seed).standard_normal(dim)
    return vector / np.linalg.norm(vector)


class Fake(Encoder):
    """Knows every scene by its file. Counts what it is asked."""

    dim = 512
    fingerprint = ""
    library = "fake"
    supported_kinds = frozenset(Kind)

    def __init__(self, scenes: dict[str, Scene]) -> None:
        self.scenes = scenes
        self.name = type(self).__name__
        self.fingerprint = hashlib.sha256(self.name.encode()).hexdigest()
        self.calls: list[list[Item]] = []

    def _details(self) -> dict[str, Any]:
        return {"dtype": "float32", "device": "cpu", "prompt_hash": None}

    def _embed(self, items: list[Item]) -> np.ndarray:
        self.calls.append(items)
        return np.stack([self.vector(item) for item in items]).astype(np.float32)

    def vector(self, item: Item) -> np.ndarray:
        if item.image is None:
            return self.text(str(item.text))
        digest = hashlib.sha256(Path(item.image).read_bytes()).hexdigest()  # type: ignore[arg-type]
        return self.shown(self.scenes[digest], item.instruction)

    def text(self, text: str) -> np.ndarray:
        """Another direction for every text, nearly at right angles."""
        return _direction(text, self.dim)

    def picture(self, scene: Scene) -> np.ndarray:
        """What is seen, the largest thing most, the ground nearly as much."""
        things = sorted(scene.placed, key=lambda p: -p.size)
        seen = [self.text(p.thing.phrase) / (1 + rank) for rank, p in enumerate(things)]
        vector = np.sum([*seen, 0.9 * self.text(ground(scene.background))], axis=0)
        return np.asarray(vector / np.linalg.norm(vector))

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        raise NotImplementedError


class Oracle(Fake):
    """Understands every instruction that can be answered; sees the picture for the others."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        for question in questions(scene):
            if instruction in (question.instruction, *question.paraphrases):
                return self.text(question.answer)
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
        vector = self.picture(scene) + self.text(instruction)
        return np.asarray(vector / np.linalg.norm(vector))


class Blind(Fake):
    """Sees nothing but the picture's largest thing; instructions change nothing."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        return self.picture(scene)


class Reader(Oracle):
    """Takes texts and images, and no image with an instruction."""

    supported_kinds = frozenset({Kind.TEXT, Kind.IMAGE})


class Constant(Fake):
    """One vector for everything."""

    dim = 8

    def vector(self, item: Item) -> np.ndarray:
        return np.full(self.dim, self.dim**-0.5)


class Broken(Oracle):
    """Every picture with an instruction overflows."""

    def shown(self, scene: Scene, instruction: str | None) -> np.ndarray:
        return super().shown(scene, instruction) * (1.0 if instruction is None else np.nan)


KINDS = {k.__name__: k for k in (Oracle, LateFusion, Blind, Reader, Constant, Broken)}


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Arguments of a small benchmark of scenes."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def specs() -> dict[str, SceneBenchmark]:
    """A small benchmark of each tier, without a pixel."""
    return {
        "G": grid.generate(12, seed=9002),
        "B": binding.generate(8, seed=9003),
        "S": unseen_scenes.generate(**SMALL),
    }


@pytest.fixture(scope="session")
def folders(
    specs: dict[str, SceneBenchmark], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Benchmark]:
    """The same as folders; not to be changed."""
    root = tmp_path_factory.mktemp("ctrlbench")
    return {
        tier: write_scene_benchmark(spec, root / tier, side=SIDE) for tier, spec in specs.items()
    }


@pytest.fixture
def fake(specs: dict[str, SceneBenchmark], folders: dict[str, Benchmark]) -> Callable[[str], Fake]:
    """Makes a fake by its name; it knows the scenes of all tiers."""
    scenes = {
        picture.sha256: image.scene
        for tier, spec in specs.items()
        for picture, image in zip(folders[tier].images, spec.images, strict=True)
    }
    return lambda name: KINDS[name](scenes)

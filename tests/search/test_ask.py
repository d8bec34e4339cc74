"""A new instruction over an old index."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed_embedder import HashedEmbedder, draw, vector_of

from abc_embed.errors import CheckpointError, DataError, UsageError
from abc_embed.search import Index
from abc_embed.search.ask import ask


class Instructed(HashedEmbedder):
    """Asked about an image, it sees the more of "a dog" the higher the image's number is."""

    def __init__(self) -> None:
        super().__init__()
        self.config["instruct_adapter"] = True
        self.asked: list[str] = []

    def stream(self, items: Any, **options: Any) -> Any:
        items = list(items)
        results = super().stream(items, **options)
        for item, result in zip(items, results, strict=True):
            if item.instruction is None or not isinstance(result, np.ndarray):
                yield result
                continue
            assert item.instruction == "what is on the left?"
            self.asked.append(Path(item.image).stem)
            seen = int(Path(item.image).stem) / 100 * vector_of(b"a dog") + 0.3 * result
            yield seen / np.linalg.norm(seen)

    def embed(self, items: Any, **options: Any) -> Any:
        values = list(items)
        if options.get("on_error") == "skip":  # calibration, of no matter here
            return np.zeros((0, self.dim), np.float32), []
        return super().embed(values, **options)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for number in range(100):
        draw(tmp_path / "photos" / f"{number}.png", number, (10 + number, 6))
    embedder: Any = Instructed()
    made = Index.create(tmp_path / "index", embedder)
    made.add([tmp_path / "photos"])
    return made


def stems(index: Index, **options: Any) -> list[str]:
    return [hit.path.stem for hit in ask(index, "a dog", "what is on the left?", **options).hits]


def test_the_whole_budget_is_the_direct_answer(index: Index) -> None:
    asked = ask(index, "a dog", "what is on the left?", budget=1, count=3)
    assert (asked.images, asked.passes, asked.share) == (100, 100, 1.0)
    scores = [hit.score for hit in asked.hits]
    assert scores == sorted(scores, reverse=True)
    assert all(int(stem) > 80 for stem in stems(index, budget=1, count=3))


def test_a_budget_is_kept(index: Index) -> None:
    embedder: Any = index.embedder
    embedder.asked.clear()
    seen: list[tuple[int, int]] = []
    asked = ask(
        index, "a dog", "what is on the left?", budget=0.2, on_progress=lambda *n: seen.append(n)
    )
    assert asked.passes == len(embedder.asked) == len(set(embedder.asked)) == 20
    assert seen[-1] == (20, 20)
    closest = {hit.path.stem for hit in index.search("a dog", 15)}
    assert closest <= set(embedder.asked)  # the rest is a sample
    assert asked.share is None  # of five images
    assert ask(index, "a dog", "what is on the left?", budget=0.9).share is not None


def test_filters_and_files_that_are_gone(index: Index, tmp_path: Path) -> None:
    assert set(stems(index, budget=1, where="width < 13")) == {"0", "1", "2"}
    (tmp_path / "photos" / "99.png").unlink()
    (tmp_path / "photos" / "98.png").write_bytes(b"no picture")
    asked = ask(index, "a dog", "what is on the left?", budget=1)
    assert (asked.passes, asked.unreadable) == (98, 2)
    with pytest.raises(DataError, match="none of the 2 images that were to be looked at"):
        ask(index, "a dog", "what is on the left?", budget=1, where="width >= 108")


def test_what_cannot_be_asked(index: Index) -> None:
    for budget in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            ask(index, "a dog", "what is on the left?", budget=budget)
    with pytest.raises(DataError, match="no image to look at"):
        ask(index, "a dog", "what is on the left?", where="width > 9999")
    assert index.embedder is not None
    index.embedder.config["instruct_adapter"] = False
    with pytest.raises(CheckpointError, match="no instruction adapter"):
        ask(index, "a dog", "what is on the left?")

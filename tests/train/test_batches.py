"""Groups to features: equal texts merged, whole groups per chunk, the same from any process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from abc_embed.errors import DataError, ImageError
from abc_embed.train.batches import (
    Group,
    batches,
    captioned,
    instructed,
    make_batch,
    split_queries,
    split_texts,
)


def test_equal_texts_are_one_candidate(tiny: Any, pictures: Any) -> None:
    _, processor = tiny()
    image = pictures("pretrain").groups(0, 1, 0)[0].image
    other = 255 - image
    batch = make_batch(
        [
            captioned(image, "a dog", ["a cat in the rain", "a cow"]),
            captioned(other, "a cow", ["a dog"]),
            captioned(image, "a dog"),
        ],
        processor,
    )
    assert sorted(batch.texts) == ["a cat in the rain", "a cow", "a dog"]
    assert [batch.texts[i] for i in batch.positives] == ["a dog", "a cow", "a dog"]
    lengths = [features.tokens for features in batch.candidates]
    assert lengths == sorted(lengths)


def test_one_image_is_cut_once_for_all_that_is_asked(
    tiny: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = tiny()
    groups = pictures("instruct").groups(0, 3, 0)
    cut = []
    patches = type(processor).patches
    monkeypatch.setattr(
        type(processor), "patches", lambda *a, **k: cut.append(1) or patches(*a, **k)
    )
    batch = make_batch(groups, processor)
    assert len(cut) == 3 and len(batch.queries) == 6 and batch.group_sizes == (2, 2, 2)
    assert batch.queries[0].pixel_values is batch.queries[1].pixel_values
    assert len({f.image_key for f in batch.queries}) == 3


def test_max_pixels_limits_training_images(tiny: Any, pictures: Any) -> None:
    _, processor = tiny()
    groups = pictures("pretrain").groups(0, 2, 0)
    full, small = (make_batch(groups, processor, limit).queries[0].tokens for limit in (0, 784))
    assert full - small == 3  # four visual tokens or one


@pytest.mark.parametrize(
    ("sizes", "chunk_size", "expected"),
    [
        ((2, 2, 2), 0, [6]),
        ((2, 2, 2), 4, [4, 2]),
        ((2, 2, 2), 3, [2, 2, 2]),
        ((1, 4, 1, 1), 3, [1, 4, 2]),
        ((1, 1, 1), 1, [1, 1, 1]),
        ((5,), 2, [5]),
    ],
)
def test_chunks_hold_whole_groups(
    batch_of: Any, sizes: tuple[int, ...], chunk_size: int, expected: list[int]
) -> None:
    query = batch_of("pretrain").queries[0]
    batch = replace(batch_of("pretrain"), queries=(query,) * sum(sizes), group_sizes=sizes)
    assert [len(chunk) for chunk in split_queries(batch, chunk_size)] == expected


def test_texts_are_cut_evenly_and_none_is_lost() -> None:
    assert split_texts(range(7), 3) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert split_texts(range(7), 0) == [tuple(range(7))]
    assert split_texts([], 4) == split_texts([], 0) == []


def test_a_group_without_a_query_is_refused(tiny: Any) -> None:
    _, processor = tiny()
    with pytest.raises(DataError, match="without"):
        make_batch([], processor)
    with pytest.raises(DataError, match="without"):
        make_batch([instructed("x.png", [])], processor)


@pytest.mark.parametrize("first_step", [0, 2])
def test_workers_give_the_same_batches_in_the_same_order(
    first_step: int, tiny: Any, config: Any, pictures: Any
) -> None:
    _, processor = tiny()
    plain = config("instruct", steps=4)
    with_workers = replace(plain, data=replace(plain.data, workers=2))
    source = pictures("instruct")
    before = torch.get_rng_state()
    alone = list(batches(source, processor, plain, first_step))
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing from training
    apart = list(batches(source, processor, with_workers, first_step))
    assert len(alone) == len(apart) == 4 - first_step
    for one, two in zip(alone, apart, strict=True):
        assert one.texts == two.texts and torch.equal(one.positives, two.positives)
        for f, g in zip(one.queries, two.queries, strict=True):
            assert torch.equal(f.input_ids, g.input_ids)
            assert f.pixel_values is not None and g.pixel_values is not None
            assert torch.equal(f.pixel_values, g.pixel_values)


@dataclass(frozen=True)
class Broken:
    """A source whose second step names a file that is not there."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        image = "gone.png" if step == 1 else np.zeros((56, 56, 3), dtype=np.uint8)
        return [captioned(image, "red above blue")]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_opened_is_one_sentence(
    workers: int, tiny: Any, config: Any
) -> None:
    _, processor = tiny()
    settings = config("pretrain")
    settings = replace(settings, data=replace(settings.data, workers=workers))
    feed = batches(Broken(), processor, settings, 0)
    next(feed)
    with pytest.raises(ImageError, match=r"gone\.png") as caught:
        next(feed)
    assert "\n" not in str(caught.value)

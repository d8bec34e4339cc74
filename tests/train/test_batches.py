"""Groups to features: equal texts merged, whole groups per chunk, the same from any process."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from abc_embed.errors import DataError, ImageError, TrainingError
from abc_embed.train.batches import (
    Group,
    LazyGroups,
    PackedShard,
    TrainBatch,
    caption_group,
    detect_killed_workers,
    instruction_group,
    load_batches,
    make_batch,
    make_shard,
    merge_shards,
    split_chunks,
    split_queries,
)
from abc_embed.train.config import RunConfig
from abc_embed.train.processes import GlobalBatch


def chunks_of(size: int) -> RunConfig:
    return RunConfig(steps=1, batch_size=1, chunk_size=size)


def test_equal_texts_are_one_candidate(tiny: Any, pictures: Any) -> None:
    _, processor = tiny()
    image = pictures("pretrain").groups(0, 1, 0)[0].image
    other = 255 - image
    batch = make_batch(
        [
            caption_group(image, "a dog", ["a cat in the rain", "a cow"]),
            caption_group(other, "a cow", ["a dog"]),
            caption_group(image, "a dog"),
        ],
        processor,
    )
    assert sorted(batch.texts) == ["a cat in the rain", "a cow", "a dog"]
    assert [query.answer for query in batch.queries] == ["a dog", "a cow", "a dog"]
    lengths = [features.tokens for features in batch.texts.values()]
    assert lengths == sorted(lengths)


def test_one_image_is_cut_once_for_all_that_is_asked(
    tiny: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = tiny()
    groups = pictures("instruct").groups(0, 3, 0)
    cut = []
    pixels = type(processor).pixels
    monkeypatch.setattr(type(processor), "pixels", lambda *a, **k: cut.append(1) or pixels(*a, **k))
    batch = make_batch(groups, processor)
    assert len(cut) == 3 and [len(group) for group in batch.groups] == [2, 2, 2]
    assert batch.queries[0].features.pixels is batch.queries[1].features.pixels
    assert len({query.features.image_key for query in batch.queries}) == 3


def test_max_pixels_limits_training_images(tiny: Any, pictures: Any) -> None:
    _, processor = tiny()
    groups = pictures("pretrain").groups(0, 2, 0)
    batches = (make_batch(groups, processor, limit) for limit in (0, 784))
    full, small = (batch.queries[0].features.tokens for batch in batches)
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
    batch = batch_of("pretrain")
    batch = replace(batch, groups=tuple(batch.queries[:1] * size for size in sizes))
    assert [len(chunk) for chunk in split_queries(batch, chunks_of(chunk_size))] == expected


def test_texts_are_cut_evenly_and_none_is_lost() -> None:
    cut = lambda texts, size: split_chunks(texts, chunks_of(size), lambda _: 1)  # noqa: E731
    assert cut(range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut(range(7), 0) == [[*range(7)]]
    assert cut([], 4) == cut([], 0) == []


def test_a_group_without_a_query_is_refused(tiny: Any) -> None:
    _, processor = tiny()
    with pytest.raises(DataError, match="without"):
        make_batch([], processor)
    with pytest.raises(DataError, match="without"):
        make_batch([instruction_group("x.png", [])], processor)


@pytest.mark.parametrize("first_step", [0, 2])
def test_workers_give_the_same_batches_in_the_same_order(
    first_step: int, tiny: Any, config: Any, pictures: Any
) -> None:
    _, processor = tiny()
    plain = config("instruct", steps=4)
    with_workers = replace(plain, data=replace(plain.data, workers=2))
    sampler = pictures("instruct")
    before = torch.get_rng_state()
    alone = list(load_batches(sampler, processor, plain, first_step))
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing from training
    apart = list(load_batches(sampler, processor, with_workers, first_step))
    assert len(alone) == len(apart) == 4 - first_step
    for one, two in zip(alone, apart, strict=True):
        same_batch(one, two)
        assert all(query.features.pixels is not None for query in one.queries)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize(("workers", "size"), [(1, 2), (2, 3), (2, 1)])
def test_workers_share_a_step_and_change_nothing(
    workers: int, size: int, stage: Any, tiny: Any, config: Any, pictures: Any
) -> None:
    """Also with more workers than groups, and texts that several shards hold."""
    _, processor = tiny()
    settings = config(stage, steps=2, batch_size=size)
    apart = replace(settings, data=replace(settings.data, workers=workers))
    for step, batch in enumerate(load_batches(pictures(stage), processor, apart, 0)):
        same_batch(batch, make_batch(pictures(stage).groups(step, size, 0), processor))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shards_merge_to_the_batch_of_the_whole(parts: int, tiny: Any, pictures: Any) -> None:
    _, processor = tiny()
    groups = [
        *pictures("pretrain").groups(0, 4, 0),
        caption_group(np.zeros((84, 56, 3), np.uint8), "x"),
    ]
    cuts = [groups[len(groups) * p // parts : len(groups) * (p + 1) // parts] for p in range(parts)]
    merged = merge_shards([PackedShard.pack(make_shard(cut, processor)).unpack() for cut in cuts])
    same_batch(merged, make_batch(groups, processor))


def test_a_shard_travels_as_one_tensor(tiny: Any) -> None:
    """One by one, the texts of a batch use up the file handles that a process may have."""
    _, processor = tiny()
    picture = np.zeros((56, 56, 3), dtype=np.uint8)
    groups = [
        caption_group(picture, f"caption {i}", [f"wrong {i} {j}" for j in range(7)])
        for i in range(9)
    ]
    packed = PackedShard.pack(make_shard(groups, processor))
    tensors = [getattr(packed, field.name) for field in fields(packed)]
    assert sum(isinstance(value, torch.Tensor) for value in tensors) == 1
    pairs = [("what is it?", "nothing"), ("which colour?", "black")]
    packed = PackedShard.pack(make_shard([instruction_group(picture, pairs)], processor))
    one, two = (query.features for query in packed.unpack().queries)
    assert one.pixels is two.pixels  # one picture, however much is asked of it
    assert one.pixels is not None and len(packed.pickled) < 5000
    pixels = one.pixels.numel()
    assert pixels < packed.content.numel() < 2 * pixels


def same_batch(one: TrainBatch, two: TrainBatch) -> None:
    assert list(one.texts) == list(two.texts)
    assert list(map(len, one.groups)) == list(map(len, two.groups))
    for query, other in zip(one.queries, two.queries, strict=True):
        for name in ("answer", "asks", "also_right"):
            assert getattr(query, name) == getattr(other, name)
    for f, g in zip(one.features, two.features, strict=True):
        assert (f.kind, f.grid_thw, f.image_key) == (g.kind, g.grid_thw, g.image_key)
        assert torch.equal(f.input_ids, g.input_ids)
        assert (f.pixels is None) == (g.pixels is None)
        if f.pixels is not None and g.pixels is not None:
            assert torch.equal(f.pixels, g.pixels)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_short_ones_first_pads_less_and_gives_the_same_gradients(
    stage: Any, make_stage: Any, config: Any, tiny: Any
) -> None:
    """Against the same batch in the order of the sampler, in chunks of two."""
    _, processor = tiny()
    random = np.random.default_rng(0)
    sizes = [(56, 56), (28, 28), (56, 56), (28, 28)]
    images = [random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    ask = (
        (lambda i: caption_group(images[i], f"caption {i}"))
        if stage == "pretrain"
        else (lambda i: instruction_group(images[i], [("what is it?", f"answer {i}")]))
    )
    packed = make_batch([ask(i) for i in range(4)], processor)
    number = lambda group: int(group[0].answer.split()[1])  # noqa: E731
    plain = replace(packed, groups=tuple(sorted(packed.groups, key=number)))

    def lengths(batch: TrainBatch) -> list[int]:
        return [query.features.tokens for query in batch.queries]

    assert lengths(plain) != lengths(packed)

    def padded(batch: TrainBatch) -> int:
        return sum(len(c) * max(f.tokens for f in c) for c in split_queries(batch, chunks_of(2)))

    assert padded(packed) == sum(lengths(packed)) < padded(plain)
    one, other = (make_stage(config(stage, chunk_size=2)) for _ in range(2))
    (loss, right), (loss_too, right_too) = (
        one.backward(GlobalBatch.single(packed)),
        other.backward(GlobalBatch.single(plain)),
    )
    assert loss.item() == pytest.approx(loss_too.item(), rel=1e-6) and right == right_too
    for (name, p), q in zip(one.parameters.items(), other.parameters.values(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        # Scores are cosines over τ, so a cosine's last digit counts 1 / τ² in the gradient of τ.
        last_digit = 2**-23 / q.item() ** 2 if name == "temperature.temp" else 1e-9
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm() + last_digit, name


@dataclass(frozen=True)
class Killed:
    """A sampler whose process is killed, as the system does when memory runs out."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_a_killed_worker_is_one_sentence(tiny: Any, config: Any) -> None:
    _, processor = tiny()
    settings = config("pretrain")
    settings = replace(settings, data=replace(settings.data, workers=1))
    with pytest.raises(TrainingError, match="killed") as caught, detect_killed_workers():
        next(load_batches(Killed(), processor, settings, 0))
    assert "\n" not in str(caught.value)


def test_groups_are_made_when_they_are_taken() -> None:
    made: list[int] = []
    lazy = LazyGroups(5, lambda i: made.append(i) or caption_group("x.png", str(i)))  # type: ignore
    assert len(lazy) == 5 and made == []
    assert lazy[3].pairs == ((None, "3"),) and [g.pairs[0][1] for g in lazy[1:3]] == ["1", "2"]
    assert made == [3, 1, 2] and lazy[-1].pairs == ((None, "4"),)
    with pytest.raises(IndexError):
        lazy[5]


@dataclass(frozen=True)
class Broken:
    """A sampler whose second step names a file that is not there."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        image = "gone.png" if step == 1 else np.zeros((56, 56, 3), dtype=np.uint8)
        return [caption_group(image, "red above blue")]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_opened_is_one_sentence(
    workers: int, tiny: Any, config: Any
) -> None:
    _, processor = tiny()
    settings = config("pretrain")
    settings = replace(settings, data=replace(settings.data, workers=workers))
    feed = load_batches(Broken(), processor, settings, 0)
    next(feed)
    with pytest.raises(ImageError, match=r"gone\.png") as caught:
        next(feed)
    assert "\n" not in str(caught.value)

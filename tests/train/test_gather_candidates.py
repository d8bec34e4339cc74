"""Candidates of several processes: the loss and its gradients, by closed form and by the golden."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from process_parts import gathered_step, run_processes, small_config, small_model

from abc_embed.errors import ConfigError, DataError
from abc_embed.train.batches import caption_group, load_batches, make_batch
from abc_embed.train.processes import BatchInfo, GlobalBatch, check_batch_size


def by_hand(
    query: Any, candidates: Any, positives: Any, tau: float, smoothing: float
) -> dict[str, Any]:
    """The loss of all queries among all candidates and its derivatives, written out."""
    cosines = query @ candidates.T
    scores = cosines / tau
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    share = shifted / shifted.sum(axis=1, keepdims=True)
    target = np.full_like(share, smoothing / len(candidates))
    target[np.arange(len(query)), positives] += 1 - smoothing
    by_score = (share - target) / len(query)
    return {
        "loss": -(target * np.log(share)).sum(axis=1).mean(),
        "query": by_score @ candidates / tau,
        "pull": by_score[:, :, None] * query[:, None, :] / tau,  # (Q, C, D), one by one
        "tau": -(by_score * cosines).sum() / tau**2,
    }


@pytest.mark.parametrize("mode", ["gradient", "published"])
def test_two_processes_give_the_published_loss_and_the_gradients_of_the_formula(
    mode: str, golden: Path
) -> None:
    expected = np.load(golden / "expected_loss.npz")
    query, candidate = expected["query"], expected["candidate"]
    tau, smoothing = float(expected["temperature"]), float(expected["label_smoothing"])
    names = [f"text {i}" for i in range(len(candidate))]
    count, cut = len(query), len(query) - 1  # one query with the second, the rest with the first
    texts = (range(count), [0, *range(count, len(candidate))])  # text 0 lies with both
    parts = [
        (query[:cut], names[:cut], candidate[list(texts[0])], [names[i] for i in texts[0]]),
        (query[cut:], names[cut:count], candidate[list(texts[1])], [names[i] for i in texts[1]]),
    ]
    results = run_processes(2, gathered_step, mode, parts, tau, smoothing)
    assert [t.error for t in results] == ["", ""]
    one, two = (t.value for t in results)

    exact = by_hand(
        *(v.astype(np.float64) for v in (query, candidate)), range(count), tau, smoothing
    )
    assert one["loss"] == two["loss"] == pytest.approx(float(expected["loss"]), abs=1e-5)
    assert one["loss"] == pytest.approx(exact["loss"], abs=1e-5)
    assert one["accuracy"] == pytest.approx(float(expected["accuracy"]), abs=1e-6)
    assert one["tau"] == two["tau"] == pytest.approx(exact["tau"], rel=1e-4)
    np.testing.assert_array_equal(one["candidates"], candidate)
    np.testing.assert_array_equal(two["candidates"], candidate)
    np.testing.assert_allclose(
        np.concatenate([one["query"], two["query"]]), exact["query"], atol=1e-6
    )

    pull = exact["pull"]
    if (
        mode == "gradient"
    ):  # all queries pull at a candidate, wherever it lies; the first copy counts
        wanted = [pull[:, list(texts[0])].sum(0), pull[:, list(texts[1])].sum(0)]
        wanted[1][0] = 0
    else:  # only those of its own process do
        wanted = [pull[:cut, list(texts[0])].sum(0), pull[cut:, list(texts[1])].sum(0)]
    np.testing.assert_allclose(one["own"], wanted[0], atol=1e-6)
    np.testing.assert_allclose(two["own"], wanted[1], atol=1e-6)
    # The test could fail: the two ways differ by far more than that.
    assert np.abs(pull[:, :count].sum(0) - pull[:cut, :count].sum(0)).max() > 1e-4


def test_what_the_processes_bring_is_numbered_alike() -> None:
    infos = [
        BatchInfo(dict.fromkeys(texts, 1), (("what?", texts[0]),) * count, 1)
        for texts, count in (("ab", 3), ("ca", 3), ("dc", 1))
    ]
    own: Any = SimpleNamespace(queries=[SimpleNamespace(answer=text) for text in "aac"])
    global_batch = GlobalBatch(own, infos, rank=1)
    assert global_batch.query_count == 7 and global_batch.loss_weight == 9 / 7
    assert global_batch.numbers == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert global_batch.new_texts({"b"}) == [["a"], ["c"], ["d"]]
    assert global_batch.positives().tolist() == [0, 0, 2]


class Named:
    """One caption per image; the image of all but the group `mine` cannot be opened."""

    def __init__(self, *mine: int) -> None:
        self.mine = mine

    def groups(self, step: int, count: int, seed: int) -> list[Any]:
        picture = np.zeros((28, 28, 3), dtype=np.uint8)
        return [
            caption_group(picture if i in self.mine else "no.png", f"caption {step} {i}")
            for i in range(count)
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_process_opens_its_own_share_and_none_is_dropped(workers: int) -> None:
    _, processor = small_model()
    config = small_config("pretrain", steps=2, batch_size=5)
    config = replace(config, data=replace(config.data, workers=workers))
    owners = [(0,), (1, 2), (3, 4)]
    for rank, mine in enumerate(owners):
        made = [b.texts for b in load_batches(Named(*mine), processor, config, 0, rank, 3)]
        wanted = [{f"caption {step} {i}" for i in mine} for step in range(2)]
        assert [set(texts) for texts in made] == wanted


def test_fewer_images_than_processes_is_one_sentence() -> None:
    check_batch_size(4, 4)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 3, .* there are 4"):
        check_batch_size(3, 4)
    _, processor = small_model()
    config = small_config("pretrain", batch_size=3)
    with pytest.raises(DataError, match="3 images for step 1, fewer than the 4 processes"):
        next(load_batches(Named(0, 1, 2), processor, config, 0, 0, 4))


def test_one_batch_alone_is_its_own_share() -> None:
    _, processor = small_model()
    batch = make_batch(Named(0, 1).groups(0, 2, 0), processor)
    global_batch = GlobalBatch.single(batch)
    assert global_batch.loss_weight == 1
    assert list(global_batch.numbers) == list(batch.texts)

"""The measure of robustness: what changes really changes, and nothing else does."""

import numpy as np
import pytest

from abc_embed import Embedder
from abc_embed.bench import robust
from abc_embed.bench.metrics import auc
from experiments.curriculum import wide


def test_auc_counts_pairs() -> None:
    assert auc([3.0, 2.0], [1.0, 0.0]) == 1.0
    assert auc([0.0], [1.0, 0.0]) == 0.25
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 9, 40), rng.integers(0, 9, 30)
    pairs = np.sign(above[:, None] - below[None, :])
    assert auc(above, below) == pytest.approx((pairs.mean() + 1) / 2)


def test_other_words_keep_what_is_asked_and_are_none_of_trainings() -> None:
    asked = robust.sample_questions(60)
    assert {a.question.kind for a in asked} == {"place", "relation", "kind", "size", "background"}
    framed = [new for _, new in wide.SYNONYMS] + [w.format("") for w in wide.WRAPPERS]
    for row in asked:
        words = robust.in_other_words(row.question, row.number)
        own = (row.question.instruction, *row.question.paraphrases)
        assert words not in own
        if row.question.kind != "background":
            core = row.question.instruction.removeprefix("what is ").rstrip("?")
            assert core in words
            frame = words.replace(core, "")
            assert not any(frame.strip(" ?") == other.strip(" :?") for other in framed)


def test_every_condition_changes_what_it_says_and_keeps_the_question() -> None:
    row = next(a for a in robust.sample_questions(9) if a.question.kind == "place")
    plain = robust.CONDITIONS[robust.PLAIN](row)
    for name, change in robust.CONDITIONS.items():
        item = change(row)
        same_picture = np.array_equal(np.asarray(item.image), np.asarray(plain.image))
        same_words = item.instruction == plain.instruction
        assert same_picture == (name in (robust.PLAIN, "other words")), name
        assert same_words == (name != "other words"), name


def test_the_bundled_model_is_measured() -> None:
    findings = robust.measure(Embedder.from_pretrained("bundled", device="cpu"), scenes=4)
    scores = findings["scores"]
    assert list(scores)[: len(robust.CONDITIONS)] == list(robust.CONDITIONS)
    assert scores[robust.PLAIN]["kept"]["value"] == 1.0
    assert scores[robust.PLAIN]["r1"]["value"] > 0.5
    assert scores["int8"]["kept"]["value"] >= scores["width 32"]["kept"]["value"]
    assert 0.0 <= findings["nothing_fits"]["auc"] <= 1.0

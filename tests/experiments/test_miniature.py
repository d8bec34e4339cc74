"""The paper in miniature: fair comparisons, honest words, and work that is never done twice."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sources
import torch

from abc_embed import Embedder, Item, checkpoint
from abc_embed.adapters import detach
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.data.records import read_records
from abc_embed.errors import DataError
from abc_embed.scenes.dataset import write_dataset
from abc_embed.scenes.questions import questions
from abc_embed.scenes.render import render
from experiments.miniature import run, work
from experiments.miniature.evaluate import SCORES, evaluate, unseen_scenes
from experiments.miniature.plan import (
    CONDITIONS,
    INSTRUCTIONS,
    REFERENCE,
    START,
    WHOLE,
    Condition,
    Job,
    Sizes,
    job_config,
    jobs,
    key,
)
from experiments.miniature.shared import SharedInputs, cut_base
from experiments.miniature.work import PairSampler, sample_pairs

TINY = Sizes(
    seeds=(1,),
    images=24,
    steps=2,
    batch=2,
    mining_steps=1,
    pool=8,
    drawn=6,
    instruct_steps=2,
    instruct_images=2,
    captions=6,
    queries=6,
    precision="float32",
)


# -- the comparisons are fair ----------------------------------------------------------------------


def test_each_condition_differs_from_the_reference_in_one_thing() -> None:
    for condition in CONDITIONS:
        if condition.stage == "pretrain" and not condition.name.startswith("long"):
            plain = replace(condition, name=REFERENCE.name, cost=REFERENCE.cost)
            names = Condition.__slots__
            odd = [n for n in names if getattr(plain, n) != getattr(REFERENCE, n)]
            assert len(odd) == (condition is not REFERENCE), condition.name


def test_only_what_is_compared_reaches_the_configuration() -> None:
    sizes = Sizes()
    plain = job_config(Job(REFERENCE, 1), sizes)
    for condition in CONDITIONS:
        config = job_config(Job(condition, 1), sizes)
        if condition.stage == "pretrain":
            same = replace(
                config,
                data=plain.data,
                temperature=plain.temperature,
                train=replace(
                    config.train,
                    steps=plain.train.steps,
                    batch_size=plain.train.batch_size,
                    label_smoothing=plain.train.label_smoothing,
                ),
            )
            assert same == plain
    by = {c.name: job_config(Job(c, 1), sizes) for c in CONDITIONS}
    assert by["mined-0"].data.negatives == 0
    assert by["tau-fixed"].temperature.learn is False
    assert by["tau-from-0.01"].temperature.start == 0.01
    assert by["batch-x4"].train.batch_size == 4 * plain.train.batch_size
    assert by["long-mined-0-sharp"].train.label_smoothing == 0


def test_a_key_is_of_what_decides_the_result_alone() -> None:
    job = Job(REFERENCE, 1)
    own = key(job, TINY, "weights")
    assert own == key(Job(replace(REFERENCE, cost=9.0), 1), TINY, "weights")
    assert own == key(job, replace(TINY, seeds=(1, 2)), "weights")
    others = {
        key(Job(REFERENCE, 2), TINY, "weights"),
        key(Job(replace(REFERENCE, negatives=5), 1), TINY, "weights"),
        key(job, replace(TINY, rate=2e-3), "weights"),
        key(job, TINY, "other weights"),
    }
    assert own not in others and len(others) == 4
    everything = [key(j, Sizes(), "weights") for j in jobs(Sizes())]
    assert len(set(everything)) == len(everything) == 1 + 3 * len(CONDITIONS)


def test_finished_runs_are_found_again() -> None:
    """By the keys under which the repository's results were written."""
    results = run.read_results(sources.ROOT / "results" / run.RESULTS_FILE)
    weights = next(iter(results.values()))["weights"]
    assert set(results) == {key(job, Sizes(), weights) for job in jobs(Sizes())}


def test_one_seed_of_every_condition_comes_first() -> None:
    order = list(jobs(Sizes()))
    assert [job.seed for job in order] == sorted(job.seed for job in order)
    assert all(job.needs is None or order.index(job.needs) < order.index(job) for job in order)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scenes") / "set", 24, 11, 32)


def test_whole_and_shuffled_batches_hold_the_same_pairs(scenes: Path) -> None:
    images, steps, count = 12, 4, 3
    whole = PairSampler(scenes, images, whole=True)
    mixed = PairSampler(scenes, images, whole=False)
    groups = [whole.groups(step, count, 5) for step in range(steps)]
    singles = [mixed.groups(step, count * INSTRUCTIONS, 5) for step in range(steps)]

    def pairs(batches: Any) -> list[tuple[str, str | None, str]]:
        return sorted((str(g.image), *ask) for batch in batches for g in batch for ask in g.pairs)

    assert pairs(groups) == pairs(singles)
    assert all(len(g.pairs) == INSTRUCTIONS for batch in groups for g in batch)
    assert all(len(g.pairs) == 1 for batch in singles for g in batch)
    assert [len(batch) * INSTRUCTIONS for batch in groups] == [len(batch) for batch in singles]
    assert max(len({str(g.image) for g in batch}) for batch in singles) > count
    assert pairs([whole.groups(0, count, 6)]) != pairs([groups[0]])


def test_the_questions_of_an_image_have_different_answers_if_they_can(scenes: Path) -> None:
    for record in read_records(scenes):
        chosen = sample_pairs(record, np.random.default_rng(1))
        answers = {ask.answer for ask in record.instructions}
        assert len({a for _, a in chosen}) == min(INSTRUCTIONS, len(answers))
        known = {
            (w, a.answer) for a in record.instructions for w in (a.instruction, *a.paraphrases)
        }
        assert set(chosen) <= known


def test_too_few_scenes_are_said(scenes: Path) -> None:
    with pytest.raises(DataError, match="25 are needed"):
        PairSampler(scenes, 25, whole=True)


def test_unseen_captions_all_differ() -> None:
    pictures, texts = unseen_scenes(replace(TINY, captions=60))
    assert len(set(texts)) == len(texts) == len(pictures) > 30


class Oracle:
    """Texts have random vectors; a picture has its caption's, a question its answer's and more."""

    def __init__(self, *, blind: bool = False, strange: float = 0.0) -> None:
        spec = generate(TINY.queries, 1, TINY.measured_world)
        pictures, texts = unseen_scenes(TINY)
        self._of = {_look(p): text for p, text in zip(pictures, texts, strict=True)}
        self._elsewhere = dict[tuple[str | None, bytes], str]()
        for query in split_mirrors(spec)[1]:
            scene = spec.images[query.image].scene
            look = _look(Item(image=render(scene, TINY.side), instruction=query.instruction))
            own = {question.answer for question in questions(scene)}
            self._of[look] = query.answer
            self._elsewhere[look] = next(text for text in spec.candidates if text not in own)
        self._first, self._blind, self._strange = texts[0], blind, strange

    def embed(self, items: list[str | Item]) -> np.ndarray:
        return np.stack([self._vector(item) for item in items])

    def _vector(self, item: str | Item) -> np.ndarray:
        if isinstance(item, str):
            random = np.random.default_rng(list(item.encode()))
            vector = random.standard_normal(512)
            return vector / np.linalg.norm(vector)
        if item.instruction is None:
            return self._vector(self._first if self._blind else self._of.get(_look(item), "?"))
        right = self._vector(self._of[_look(item)])
        return right + self._strange * self._vector(self._elsewhere[_look(item)])


def _look(item: Item) -> tuple[str | None, bytes]:
    return item.instruction, np.asarray(item.image).tobytes()


def test_who_knows_all_scores_one_and_who_does_not_less() -> None:
    scores = evaluate(Oracle(), TINY)  # type: ignore[arg-type]
    image_only = scores.pop("image_only")
    assert scores == dict.fromkeys(SCORES[:4], 1.0) and image_only < 1
    # One vector for all pictures: the first caption is found, and no picture, since all tie.
    blind = evaluate(Oracle(blind=True), TINY)  # type: ignore[arg-type]
    assert blind["image_to_text"] == 1 / len(unseen_scenes(TINY)[1])
    assert blind["text_to_image"] == 0
    # An answer that no picture has wins among all, and is none among the picture's own.
    strange = evaluate(Oracle(strange=2.0), TINY)  # type: ignore[arg-type]
    assert strange["instructed"] == 0 and strange["within_image"] == 1


# -- the base --------------------------------------------------------------------------------------


def test_a_base_of_all_layers_is_the_bundled_model_with_a_fresh_head(tmp_path: Path) -> None:
    cut_base(tmp_path / "all", (0, 1, 2, 3))
    whole, processor = checkpoint.load("bundled")
    detach(whole)
    whole.head.reset_parameters()
    item = Item(image=unseen_scenes(replace(TINY, captions=1))[0][0].image, instruction="the thing")
    ours = Embedder(*checkpoint.load(str(tmp_path / "all"))).embed([item, "a dog"])
    assert abs(ours - Embedder(whole, processor).embed([item, "a dog"])).max() < 1e-6
    cut_base(tmp_path / "two", (0, 2))
    two, _ = checkpoint.load(str(tmp_path / "two"))
    layers, all_layers = (m.backbone.vlm.language_model.layers for m in (two, whole))
    assert len(layers) == 2
    for mine, theirs in zip(layers, (all_layers[0], all_layers[2]), strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)


# -- the work --------------------------------------------------------------------------------------


def test_a_run_of_each_stage_from_base_to_line(tmp_path: Path) -> None:
    shared = SharedInputs(tmp_path, TINY)
    shared.make()
    mined = [record.negatives for record in read_records(shared.records)]
    assert all(0 < len(texts) <= TINY.drawn for texts in mined)
    start = work.run_job(Job(START, 0), tmp_path, shared)
    first = work.run_job(Job(REFERENCE, 1), tmp_path, shared)
    second = work.run_job(Job(WHOLE, 1), tmp_path, shared)
    assert start["curve"] == [] and len(first["curve"]) == TINY.steps
    for found in (start, first, second):
        assert set(found["scores"]) == set(SCORES)
        assert json.loads(json.dumps(found)) == found
    # Stage 2 leaves an image alone where it was, and τ too; and it is stage 1 that it began with.
    for score in ("image_to_text", "text_to_image", "image_only"):
        assert second["scores"][score] == first["scores"][score]
    assert second["tau"] == first["tau"] != start["tau"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mined-6-seed1", shared.folder.name]


class Pool(Executor):
    """Answers at once, and remembers who was asked."""

    def __init__(self, answer: Callable[[Job], dict[str, Any]]) -> None:
        self.answer, self.asked = answer, list[Job]()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append(args[0])
        future = Future[Any]()
        try:
            future.set_result(self.answer(args[0]))
        except DataError as problem:
            future.set_exception(problem)
        return future


def run_jobs(pool: Pool, missing: list[Job], out: Path) -> None:
    progress = run.ProgressReporter(len(missing), missing, 2, lambda *_, **__: None)
    run.run_jobs(pool, missing, out, None, {}, progress)  # type: ignore[arg-type]


def test_a_run_waits_for_the_one_it_needs(tmp_path: Path) -> None:
    stage2, reference = Job(WHOLE, 1), Job(REFERENCE, 1)
    pool = Pool(lambda job: {"key": job.name})
    run_jobs(pool, [stage2, reference, Job(START, 0)], tmp_path)
    assert pool.asked == [reference, Job(START, 0), stage2]
    assert len(run.read_results(tmp_path / run.RESULTS_FILE)) == 3


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    def answer(job: Job) -> dict[str, Any]:
        if job.seed == 2:
            raise DataError("the disk is gone")
        return {"key": job.name}

    with pytest.raises(DataError, match="the disk is gone"):
        run_jobs(Pool(answer), [Job(REFERENCE, 2), Job(REFERENCE, 1)], tmp_path)
    assert Job(REFERENCE, 1).name in run.read_results(tmp_path / run.RESULTS_FILE)


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    shared = SharedInputs(tmp_path, TINY)
    done = [{"key": key(job, TINY, shared.bundled)} for job in jobs(TINY)]
    run.write_results(tmp_path / run.RESULTS_FILE, done)
    assert run.run(tmp_path, TINY, 1, lambda *_: pytest.fail("something was run")) == done
    assert not shared.folder.exists()


def test_a_lost_model_is_made_again() -> None:
    missing = [Job(WHOLE, 1)]
    run._add_lost_models(missing, Path("nowhere"))
    assert missing == [Job(REFERENCE, 1), Job(WHOLE, 1)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / run.RESULTS_FILE).write_text('{"key": "a"}\n{"key"\n')
    with pytest.raises(DataError, match=r"miniature\.jsonl:2: .* remove the line"):
        run.read_results(tmp_path / run.RESULTS_FILE)

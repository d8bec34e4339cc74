"""The lessons of the bundled model: fast paths are the product's arithmetic, and all resumes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from abc_embed import Embedder, Item
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import all_answers, caption
from abc_embed.scenes.render import which_thing
from abc_embed.scenes.things import BACKGROUNDS, THINGS, kept_apart
from experiments.curriculum import run as curriculum
from experiments.curriculum.language import LanguageEmbedder, PromptTokenizer, QuestionStream
from experiments.curriculum.lesson import learn
from experiments.curriculum.run import assemble
from experiments.curriculum.sampler import SceneSampler
from experiments.curriculum.together import (
    VisionLanguage,
    WideStream,
    asked_loss,
    interpolate,
    matryoshka_loss,
)
from experiments.curriculum.tokenizer import SPECIAL, corpus
from experiments.curriculum.vision import GROUPED_ATTENTION, encode, new_vision, token_loss
from experiments.curriculum.wide import wide_scene
from experiments.curriculum.world import (
    CELL,
    Codebook,
    annotate,
    draw,
    patches,
)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of the same making: the first sentences of the corpus only."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(scenes=20), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_the_fast_paths_are_the_products_arithmetic(tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    language, vision = LanguageEmbedder(tokenizer).eval(), new_vision()
    vision.config._attn_implementation = GROUPED_ATTENTION
    nn.init.normal_(vision.get_parameter("merger.mlp.2.weight"), std=0.1)  # or pictures say nothing
    both = VisionLanguage(tokenizer)
    both.vision, both.language = vision, language
    torch.save(both.state_dict(), tmp_path / "together.pt")
    base = assemble(tmp_path / "base", tokenizer_file, tmp_path / "together.pt")
    model = Embedder.from_pretrained(str(base), device="cpu", dtype="float32")

    pictures = [draw(make_scene(9, i), 5, 5) for i in range(3)]
    prompts, question = PromptTokenizer(tokenizer), "what is on the left?"
    with torch.no_grad():
        tokens = encode(vision, patches(torch.from_numpy(np.stack(pictures))), 3, (5, 5))
        ids = prompts.images([question] * 3, 25)
        query = language.pool(*language.hidden(ids, tokens)).numpy()
        names = language.pool(*language.hidden(prompts.texts(["a dog", "an egg"])))

    ours = model.embed([Item(image=picture, instruction=question) for picture in pictures])
    assert np.abs(query - ours).max() <= 1e-5
    assert np.abs(names.numpy() - model.embed(["a dog", "an egg"])).max() <= 1e-5
    assert np.abs(ours[0] - ours[1]).max() > 1e-4  # the pictures do matter


@pytest.mark.parametrize("grid", [(4, 4), (3, 6), (5, 3)])
def test_labels_say_what_each_cell_shows(grid: tuple[int, int]) -> None:
    rows, columns = grid
    scene = make_scene(9, 4)
    labels, places, shown = annotate(scene, rows, columns)
    pixels = which_thing(scene, columns * CELL, rows * CELL)
    for token in range(rows * columns):
        y, x = divmod(token, columns)
        cell = pixels[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
        number = int(shown[token])
        if number:
            assert (cell == number).mean() >= 0.12
            assert THINGS[labels[token]] is scene.placed[number - 1].thing
            assert places[token, 2] == pytest.approx(scene.placed[number - 1].x * 2 - 1)
        else:
            assert all((cell == n).mean() < 0.12 for n in range(1, len(scene.placed) + 1))
            assert labels[token] >= len(THINGS)
        assert places[token, :2] == pytest.approx(
            ((x + 0.5) / columns * 2 - 1, (y + 0.5) / rows * 2 - 1)
        )


def test_exact_tokens_have_the_least_loss() -> None:
    book = Codebook(256)
    labels, places, _ = annotate(make_scene(9, 5), 4, 4)
    label, place = torch.as_tensor(labels)[None], torch.as_tensor(places)[None]
    exact = book.tokens(label, place)
    loss, right = token_loss(exact, label, place, book)
    worse, _ = token_loss(exact + 0.1 * torch.randn(exact.shape), label, place, book)
    assert right == 1.0
    assert loss < worse


def test_a_sampler_repeats_itself_and_no_negative_is_true() -> None:
    for stage, asks in (("pretrain", 1), ("instruct", 4)):
        sampler = SceneSampler(stage, negatives=3)  # type: ignore[arg-type]
        first, again = sampler.groups(2, 6, seed=1), sampler.groups(2, 6, seed=1)
        for one, two in zip(first, again, strict=True):
            assert one.pairs == two.pairs
            assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
            assert len(one.pairs) == asks
            if stage == "pretrain":
                assert one.pairs[0][1] not in one.negatives
        assert sampler.groups(3, 6, seed=1)[0].pairs != first[0].pairs


def test_questions_of_a_batch_fit_their_scenes(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    batch = QuestionStream(tokenizer, seed=3, scenes=8).make(0)
    assert len(batch.ids) == 16
    visual = batch.grid[0] * batch.grid[1]
    assert ((batch.ids == tokenizer.token_to_id("<|image_pad|>")).sum(1) == visual).all()
    for row in range(16):
        scene = batch.scene[row]
        meant = batch.shown[scene] == batch.region[row]
        if batch.region[row]:  # the answer is what the meant tokens show
            assert (batch.labels[scene][meant] == batch.answer[row]).all()
        else:
            assert batch.answer[row] >= len(THINGS)


def test_questions_in_the_wide_world_have_their_answers(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stream = WideStream(tokenizer, seed=3, scenes=12, per_scene=4)
    batch, again = stream.make(0), stream.make(0)
    assert torch.equal(batch.pixels, again.pixels)
    assert torch.equal(batch.ids, again.ids)
    assert len(batch.ids) == 48
    assert len(batch.alone) == 12
    assert not len(stream.make(1).alone)
    assert (batch.answer < 0).any()
    for row in torch.nonzero(batch.region).flatten():
        scene = batch.scene[row]
        meant = batch.shown[scene] == batch.region[row]
        assert (batch.labels[scene][meant] == batch.answer[row]).all()
    assert (batch.region[batch.answer < 0] == 0).all()


def test_the_wide_world_is_wider_and_keeps_pairs_apart() -> None:
    scenes = [wide_scene(3, index) for index in range(300)]
    for scene in scenes:
        things = [placed.thing for placed in scene.placed]
        assert not any(kept_apart(a, b) for i, a in enumerate(things) for b in things[:i])
    assert {len(scene.placed) for scene in scenes} == {1, 2, 3, 4}
    assert min(p.size for s in scenes for p in s.placed) < 0.25
    far = [s for s in scenes if min(np.abs(np.subtract(s.tint, BACKGROUNDS[s.background]))) > 40]
    assert far


def test_a_question_without_an_answer_must_lie_below_the_line() -> None:
    query = torch.eye(256)[:2]
    candidates = torch.eye(256)[:3]
    temperature = torch.tensor(0.05)

    def loss(*target: int) -> float:
        return float(
            matryoshka_loss(query, candidates, torch.tensor(target), temperature, nothing=True)
        )

    assert loss(0, 1) < 1e-3  # cosine 1, far above the line
    assert loss(0, 3) > 5.0  # it says that nothing fits, while a candidate is met exactly
    assert (
        matryoshka_loss(-query, candidates, torch.tensor([3, 3]), temperature, nothing=True) < 0.1
    )


def test_chunks_of_like_length_change_no_vector(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model, book = VisionLanguage(tokenizer), Codebook(256)
    batch = WideStream(tokenizer, seed=3, scenes=4, per_scene=3).make(0)
    answers = PromptTokenizer(tokenizer).texts(all_answers())
    losses = []
    for chunk in (5, 64):
        monkeypatch.setattr("experiments.curriculum.together.CHUNK", chunk)
        torch.manual_seed(0)
        losses.append(float(asked_loss(model, batch, answers, 8, book)[0].detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_single_tokens_have_to_name_what_they_show_where_captions_are_drawn(
    tokenizer_file: Path,
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model, book = VisionLanguage(tokenizer), Codebook(256)
    stream = WideStream(tokenizer, seed=3, scenes=2, per_scene=1)
    answers = PromptTokenizer(tokenizer).texts(all_answers())

    def loss(step: int, weight: float) -> float:
        torch.manual_seed(0)
        return float(asked_loss(model, stream.make(step), answers, 8, book, weight)[0].detach())

    assert loss(0, 1.0) > loss(0, 0.5) > loss(0, 0.0)
    assert loss(0, 1.0) - loss(0, 0.0) == pytest.approx(2 * (loss(0, 0.5) - loss(0, 0.0)), abs=1e-3)
    assert loss(1, 1.0) == loss(1, 0.0)  # no captions in this step


def test_weights_between_two(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        torch.save({"w": torch.full((2,), value)}, tmp_path / f"{name}.pt")
    found = interpolate(tmp_path / "c.pt", tmp_path / "a.pt", tmp_path / "b.pt", 0.75)
    assert torch.load(found)["w"].tolist() == [2.5, 2.5]


class _Numbers:
    """A stream of noise that follows from the step."""

    def make(self, step: int) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def _lesson(model: nn.Module, out: Path, steps: int, stop_at: int | None = None) -> Path:
    seen = iter(range(10_000))

    def loss_of(batch: Tensor) -> tuple[Tensor, Tensor, int]:
        if stop_at is not None and next(seen) == stop_at:
            raise KeyboardInterrupt
        loss = (model(batch) + 0.1 * torch.randn(4, 1)).pow(2).mean()
        return loss, loss.detach(), 4

    return learn(
        model, out, steps=steps, stream=_Numbers(), loss_of=loss_of, rate_at=lambda step: 0.01
    )


@pytest.fixture
def always_saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("experiments.curriculum.lesson.CHECKPOINT_EVERY_S", -1.0)
    yield


@pytest.mark.usefixtures("always_saved")
def test_a_broken_lesson_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 1)

    whole = torch.load(_lesson(fresh(), tmp_path / "whole.pt", 8))
    with pytest.raises(KeyboardInterrupt):
        _lesson(fresh(), tmp_path / "broken.pt", 8, stop_at=5)
    assert not (tmp_path / "broken.pt").exists()
    broken = torch.load(_lesson(fresh(), tmp_path / "broken.pt", 8))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert not (tmp_path / "broken.last").exists()


def test_the_stages_turn_a_base_into_a_model(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the assembled base to the folder that ships, two steps a stage and small batches."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    torch.save(VisionLanguage(tokenizer).state_dict(), tmp_path / "together.pt")
    assemble(tmp_path / "base", tokenizer_file, tmp_path / "together.pt")
    monkeypatch.setattr(curriculum, "BATCH_SIZES", (2, 2))
    model = curriculum.stages(tmp_path, curriculum.Lengths(stage1=2, stage2=2))
    loaded = Embedder.from_pretrained(str(model), device="cpu", dtype="float32")
    picture = draw(make_scene(9, 0), 4, 4)
    left, plain = loaded.embed([Item(image=picture, instruction="the left"), Item(image=picture)])
    assert left.shape == plain.shape == (256,)
    assert not np.allclose(left, plain)
    shutil.rmtree(model)


def test_captions_name_everything() -> None:
    scene = make_scene(9, 1)
    assert all(p.thing.phrase in caption(scene) for p in scene.placed)

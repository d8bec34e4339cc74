"""Lesson five: vision and language learn together, in a wider world.

Every step asks several questions about each of some pictures and draws captions of them now and
then; all weights move. Where asked, each visual token of a picture alone has to name what it shows,
since an index keeps such parts of a picture (`abc_embed.search.detail`). Scores are taken at
several widths at once (Matryoshka, arXiv 2205.13147), so that a vector may be cut. Questions about
things that are not there have no candidate: all of them must score below `NOTHING_COSINE`, and the
right one of other questions above it, so that a low best score says that nothing fits.

Shapes: `N` pictures, `B` queries, `T` tokens, `V` visual tokens, `C` candidates, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from abc_embed.scenes.questions import (
    NO_ANSWER,
    all_answers,
    caption,
    hard_captions,
    unanswerable,
)
from experiments.curriculum.language import (
    LanguageEmbedder,
    PromptTokenizer,
    looking_schedule,
)
from experiments.curriculum.lesson import learn, save_state, to_device
from experiments.curriculum.vision import (
    GROUPED_ATTENTION,
    WIDTH,
    encode,
    new_vision,
    token_loss,
)
from experiments.curriculum.wide import (
    wide_picture,
    wide_question,
    wide_questions,
    wide_scene,
    wide_wording,
)
from experiments.curriculum.world import (
    SMALL_GRIDS,
    Codebook,
    Grids,
    annotate,
    patches,
    sample_grid,
    stack,
)

WIDTHS = {256: 1.0, 128: 0.5, 64: 0.5, 32: 0.25}
"""Widths that the loss is taken at, and how much each weighs."""
NOTHING_COSINE = 0.5
UNANSWERABLE = 0.15  # share of questions
CHUNK = 64
"""Questions computed at once."""
CAPTION_EVERY = 2
"""One step of so many draws captions as well."""
TOKEN_WEIGHT = 1.0
"""Of the vision lesson's own loss, which keeps tokens saying what they show, and where."""
POINTING_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """Pictures `(N, H, W, 3)` uint8 of one grid, what their tokens show as in `world.annotate`, and
    questions: `ids` `(B, T)`, their `scene`, `answer` (-1 for none) and `region`, all `(B,)`.
    Captions, if any: ids of the pictures alone `(N, T)` and of 2 N texts, the right ones first."""

    pixels: Tensor
    labels: Tensor
    places: Tensor
    shown: Tensor
    ids: Tensor
    scene: Tensor
    answer: Tensor
    region: Tensor
    alone: Tensor
    captions: Tensor
    grid: tuple[int, int]


class WideStream:
    """`Asked` by step number."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        seed: int,
        scenes: int,
        per_scene: int,
        grids: Grids = SMALL_GRIDS,
    ) -> None:
        self.prompts, self.grids = PromptTokenizer(tokenizer), grids
        self.seed, self.scenes, self.per_scene = seed, scenes, per_scene
        self.answers = {text: i for i, text in enumerate(all_answers())} | {NO_ANSWER: -1}

    def make(self, step: int) -> Asked:
        rng = np.random.default_rng((self.seed, step, 37))
        grid = sample_grid(rng, self.grids)
        visual = grid[0] * grid[1]
        scenes = [wide_scene(self.seed, step * self.scenes + i) for i in range(self.scenes)]
        texts, answers, regions = [], [], []
        for scene in scenes:
            pool = wide_questions(scene)
            for _ in range(self.per_scene):
                nothing = not pool or rng.random() < UNANSWERABLE
                question = unanswerable(scene, rng) if nothing else wide_question(rng, pool)
                texts.append(wide_wording(question, rng))
                answers.append(self.answers[question.answer])
                regions.append(0 if question.region is None else question.region + 1)
        labels, places, shown = map(
            stack, zip(*(annotate(scene, *grid) for scene in scenes), strict=True)
        )
        alone = captions = torch.zeros(0, 0, dtype=torch.long)
        if step % CAPTION_EVERY == 0:
            several = [s for s in scenes if len(s.placed) > 1]  # one thing cannot be swapped
            wrong = [hard_captions(s, rng, 1)[0] for s in several]
            alone = self.prompts.images([None] * len(scenes), visual)
            captions = self.prompts.texts([caption(s) for s in scenes] + wrong)
        return Asked(
            pixels=stack([wide_picture(scene, *grid, rng) for scene in scenes]),
            labels=labels,
            places=places,
            shown=shown,
            ids=self.prompts.images(texts, visual),
            scene=torch.arange(self.scenes).repeat_interleave(self.per_scene),
            answer=torch.tensor(answers),
            region=torch.tensor(regions),
            alone=alone,
            captions=captions,
            grid=grid,
        )


class VisionLanguage(nn.Module):
    """The vision encoder and the language embedder, which learn together."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.vision, self.language = new_vision(), LanguageEmbedder(tokenizer)
        self.vision.config._attn_implementation = GROUPED_ATTENTION


def matryoshka_loss(
    query: Tensor, candidates: Tensor, target: Tensor, temperature: Tensor, *, nothing: bool
) -> Tensor:
    """Mean cross-entropy of queries `(B, D)` over candidates `(C, D)` at each of `WIDTHS`.

    With `nothing` one more candidate scores `NOTHING_COSINE` for everyone; its number is C.
    """
    total = query.new_zeros(())
    for width, weight in WIDTHS.items():
        cut_query, cut = (F.normalize(v[:, :width], dim=-1) for v in (query, candidates))
        scores = cut_query @ cut.T
        if nothing:
            scores = torch.cat([scores, scores.new_full((len(scores), 1), NOTHING_COSINE)], 1)
        total = total + weight * F.cross_entropy(scores / temperature, target)
    return total / sum(WIDTHS.values())


def _ask(language: LanguageEmbedder, batch: Asked, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors `(B, D)` of the questions about visual tokens `(N, V, D)`, and the pointing loss.

    Questions of like length go together, so that hardly any padding is computed.
    """
    lengths = batch.ids.ne(language.pad_id).sum(1)
    vectors, points, meant = [], [], []
    order = lengths.argsort()
    for rows in order.split(CHUNK):
        ids, scene = batch.ids[rows, : int(lengths[rows].max())], batch.scene[rows]
        hidden, mask = language.hidden(ids, visual[scene])
        vectors.append(language.pool(hidden, mask))
        answered = batch.answer[rows] >= 0
        of_image = hidden[ids == language.image_id].float()
        points.append(language.pointer(of_image).view(len(ids), -1)[answered])
        shows = batch.shown[scene] == batch.region[rows, None]
        meant.append(shows[answered].float())
    query = torch.cat(vectors)[order.argsort()]
    return query, F.binary_cross_entropy_with_logits(torch.cat(points), torch.cat(meant))


def _part_loss(
    language: LanguageEmbedder, hidden: Tensor, batch: Asked, answer_ids: Tensor
) -> Tensor:
    """How badly each visual token of a picture alone, through the head, names what it shows.

    `hidden` is `(N, T, D)`, that of `batch.alone`.
    """
    shown, target = batch.labels.flatten().unique(return_inverse=True)  # numbered as answers are
    names = language.pool(*language.hidden(answer_ids[shown]))
    with torch.autocast(hidden.device.type, enabled=False):
        parts = language.head(hidden[batch.alone == language.image_id].float())
    parts = F.normalize(parts, dim=-1)
    return matryoshka_loss(parts, names, target, language.temperature(), nothing=False)


def asked_loss(
    model: VisionLanguage,
    batch: Asked,
    answer_ids: Tensor,
    extra: int,
    book: Codebook,
    part_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """All losses of a step; the share of questions with an answer whose answer comes first."""
    language, count = model.language, len(batch.pixels)
    visual = encode(model.vision, patches(batch.pixels), count, batch.grid)
    seen, _ = token_loss(visual, batch.labels, batch.places, book)
    query, pointing = _ask(language, batch, visual)

    answered = batch.answer >= 0
    own = batch.answer[answered].unique()
    rest = torch.randperm(len(answer_ids), device=own.device)
    chosen = torch.cat([own, rest[~torch.isin(rest, own)][:extra]])
    candidates = language.pool(*language.hidden(answer_ids[chosen]))
    target = torch.where(answered, torch.searchsorted(own, batch.answer), len(chosen))
    temperature = language.temperature()
    loss = matryoshka_loss(query, candidates, target, temperature, nothing=True)
    loss = loss + TOKEN_WEIGHT * seen + POINTING_WEIGHT * pointing
    if len(batch.alone):
        hidden, mask = language.hidden(batch.alone, visual)
        alone = language.pool(hidden, mask)
        texts = language.pool(*language.hidden(batch.captions))
        matches = torch.arange(count, device=alone.device)
        loss = loss + matryoshka_loss(alone, texts, matches, temperature, nothing=False)
        if part_weight:
            loss = loss + part_weight * _part_loss(language, hidden, batch, answer_ids)
    right = (query @ candidates.T).argmax(1) == target
    return loss, right[answered].float().mean()


def learn_together(
    out: Path,
    tokenizer: Tokenizer,
    weights: Sequence[Path],
    steps: int,
    *,
    scenes: int = 32,
    per_scene: int = 4,
    grids: Grids = SMALL_GRIDS,
    rate: float = 5e-4,
    seed: int = 7,
    extra: int = 96,
    part_weight: float = 0.0,
    device: str = "cpu",
    workers: int = 1,
    compile: bool = False,
) -> Path:
    """Lesson five; the weights of vision and language go to `out`.

    It goes on from `weights`: of the vision encoder and of the `LanguageEmbedder`, or one file that
    this lesson wrote. `part_weight` is that of the loss of single visual tokens.
    With `compile` its layers are compiled: 1.4 times as fast on a CPU, after some minutes.
    """
    model, book = VisionLanguage(tokenizer), Codebook(WIDTH, device)
    first, *second = (torch.load(path, map_location="cpu") for path in weights)
    if second:
        model.vision.load_state_dict(first)
        model.language.load_state_dict(second[0])
    else:
        model.load_state_dict(first)
    model.to(device).train()
    if compile:
        for layer in (*model.vision.blocks, *model.language.language.layers):
            layer.compile(dynamic=True)
    answer_ids = PromptTokenizer(tokenizer).texts(all_answers()).to(device)

    def loss_of(batch: Asked) -> tuple[Tensor, Tensor, int]:
        batch = to_device(batch, device)
        with torch.autocast(batch.pixels.device.type, torch.bfloat16):
            loss, accuracy = asked_loss(model, batch, answer_ids, extra, book, part_weight)
        return loss, accuracy, len(batch.ids)

    return learn(
        model,
        out,
        steps=steps,
        stream=WideStream(tokenizer, seed, scenes, per_scene, grids),
        loss_of=loss_of,
        rate_at=lambda step: rate * looking_schedule(step / steps),
        tau=model.language.tau,
        workers=workers,
    )


def interpolate(out: Path, first: Path, second: Path, share: float) -> Path:
    """Weights between two that this lesson wrote, `share` of the way from the first to the second.

    What was fine-tuned keeps most of both this way (arXiv 2109.01903).
    """
    start, end = (torch.load(path, map_location="cpu") for path in (first, second))
    save_state({name: start[name].lerp(end[name], share) for name in start}, out)
    return out

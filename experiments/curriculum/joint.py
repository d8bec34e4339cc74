"""Lesson four: the language model moves from exact visual tokens to what vision really says.

Of eight batches, seven are instructions and answers, one is images alone and their captions, so
that a picture without a question means its whole caption when stage 1 begins. The vision encoder
rests.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import all_answers, caption, hard_captions
from experiments.curriculum.language import Asked, Asker, AskStream, Prompter, ask_loss
from experiments.curriculum.lesson import learn
from experiments.curriculum.vision import GROUPED, WIDTH, encode, new_vision
from experiments.curriculum.world import GRID_SHARES, GRIDS, Codebook, patches, see

CAPTION_EVERY = 8


@dataclass(frozen=True, slots=True)
class Looked:
    """Pictures (N, H, W, 3) with either questions about them or captions of them.

    `captions` holds the ids of the image-only queries and of 2 N texts, the right ones first.
    """

    pictures: np.ndarray
    grid: tuple[int, int]
    asked: Asked | None
    captions: tuple[np.ndarray, np.ndarray] | None


class LookStream:
    """`Looked` batches by step number; every eighth is one of captions."""

    def __init__(self, tokenizer: Tokenizer, seed: int, scenes: int) -> None:
        self.asks, self.seed, self.scenes = AskStream(tokenizer, seed, scenes), seed, scenes

    def make(self, step: int) -> Looked:
        rng = np.random.default_rng((self.seed, step, 17))
        asked = self.asks.make(step) if step % CAPTION_EVERY else None
        grid = asked.grid if asked else GRIDS[int(rng.choice(len(GRIDS), p=GRID_SHARES))]
        scenes = [make_scene(self.seed, step * self.scenes + i) for i in range(self.scenes)]
        zooms = rng.choice((1.0, 1.0, 1.6, 2.3), len(scenes))
        pictures = np.stack(
            [see(s, *grid, zoom=float(z)).picture for s, z in zip(scenes, zooms, strict=True)]
        )
        if asked:
            return Looked(pictures, grid, asked, None)
        prompter = self.asks.prompter
        texts = [caption(s) for s in scenes] + [hard_captions(s, rng, 1)[0] for s in scenes]
        queries = prompter.asked([None] * len(scenes), grid[0] * grid[1])
        return Looked(pictures, grid, None, (queries, prompter.texts(texts)))


def caption_loss(
    asker: Asker, visual: Tensor, queries: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Images (N, V, D) against N right captions and N nearly right ones: loss, share right."""
    query = asker.unit(*asker.hidden(queries, visual))
    candidates = asker.unit(*asker.hidden(texts))
    scores = query @ candidates.T / asker.temperature()
    target = torch.arange(len(query))
    return F.cross_entropy(scores, target), (scores.argmax(-1) == target).float().mean()


def schedule(progress: float) -> float:
    """Warm up over 3 %, then straight down to 2 % of the rate."""
    return progress / 0.03 if progress < 0.03 else max(0.02, (1.0 - progress) / 0.97)


def learn_to_look(
    out: Path,
    tokenizer: Tokenizer,
    vision_file: Path,
    language_file: Path,
    steps: int,
    *,
    scenes: int = 64,
    rate: float = 6e-4,
    seed: int = 4,
    extra: int = 32,
) -> Path:
    """Lesson four; the weights of the `Asker` go to `out`."""
    vision, asker, book = new_vision(), Asker(tokenizer), Codebook(WIDTH)
    vision.config._attn_implementation = GROUPED
    vision.load_state_dict(torch.load(vision_file))
    vision.eval().requires_grad_(False)
    asker.load_state_dict(torch.load(language_file))
    answer_ids = torch.from_numpy(Prompter(tokenizer).texts(all_answers()))

    def loss_of(batch: Looked) -> tuple[Tensor, Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                tokens = encode(vision, patches(batch.pictures), len(batch.pictures), batch.grid)
            visual = tokens.float()
            if batch.asked is not None:
                loss, right = ask_loss(asker, batch.asked, visual, answer_ids, extra, book)
                return loss, right, len(batch.asked.ids)
            queries, texts = (torch.as_tensor(ids) for ids in batch.captions or ())
            loss, right = caption_loss(asker, visual, queries, texts)
        return loss, right, len(queries)

    return learn(
        asker,
        out,
        steps=steps,
        stream=LookStream(tokenizer, seed, scenes),
        loss_of=loss_of,
        rate_at=lambda step: rate * schedule(step / steps),
        tau=asker.tau,
    )

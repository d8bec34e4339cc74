"""Lesson three: the language model learns to answer from exact visual tokens, without a picture.

The query is the token sequence of an image with an instruction, the visual tokens being codes
(`world.Codebook`) with some noise; the candidates are the answers of the whole batch and more,
through the same language model. A second loss asks of every visual token whether it shows what the
instruction means: with it, binding comes within minutes and not after a long plateau.

Shapes: B queries, T tokens, V visual tokens, N scenes, C candidates, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from abc_embed.chat import IMAGE_TOKEN, Chat
from abc_embed.errors import TrainingError
from abc_embed.head import Head
from abc_embed.inputs import Item
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import Question, all_answers, questions
from abc_embed.scenes.things import THINGS
from experiments.curriculum.lesson import learn
from experiments.curriculum.vision import WIDTH
from experiments.curriculum.words import CHAT_TEMPLATE
from experiments.curriculum.world import GRID_SHARES, GRIDS, Codebook, annotate

KIND_SHARES = {"place": 0.36, "relation": 0.30, "kind": 0.12, "size": 0.13, "background": 0.09}
HEAD_HIDDEN = 1024
ANCHOR_SHARPNESS = 20.0
PLAIN = "abc_embed_curriculum_plain"
PAD_TOKEN = "<|endoftext|>"


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    weights = torch.softmax(
        (query @ key.transpose(-1, -2)).float() * scaling + attention_mask, dim=-1
    )
    return (weights.to(value.dtype) @ value).transpose(1, 2), None


AttentionInterface.register(PLAIN, _plain)


def text_config(vocabulary: int, depth: int = 4) -> Qwen2VLTextConfig:
    return Qwen2VLTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=depth,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "mrope_section": [4, 6, 6]},
        use_cache=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attention_dropout=0.0,
    )


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Number of a token that must be there; raises `TrainingError`."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise TrainingError(f"the tokenizer has no {token}; make it with words.make_tokenizer")
    return int(number)


class Asker(nn.Module):
    """Language model, head, temperature and the aid that points at tokens; no vision encoder."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.language = Qwen2VLTextModel(text_config(tokenizer.get_vocab_size()))
        self.language.config._attn_implementation = PLAIN
        self.head = Head(WIDTH, hidden=HEAD_HIDDEN)
        self.pointer = nn.Linear(WIDTH, 1)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.image_id = token_id(tokenizer, IMAGE_TOKEN)
        self.pad_id = token_id(tokenizer, PAD_TOKEN)

    def temperature(self) -> Tensor:
        """τ, never below 0.02."""
        return self.log_temperature.exp().clamp_min(0.02)

    def tau(self) -> float:
        """τ as a plain number."""
        return float(self.temperature().detach())

    def hidden(self, ids: Tensor, visual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Last hidden state (B, T, D) and mask (B, T) of ids (B, T), visual tokens (B, V, D)."""
        mask: Tensor = ids.ne(self.pad_id)
        embedded = self.language.embed_tokens(ids)
        if visual is not None:
            embedded = embedded.masked_scatter(
                (ids == self.image_id)[..., None], visual.to(embedded.dtype)
            )
        # Where the padding is, so far below zero that nothing attends to it.
        additive = (-1e9 * (~mask).float())[:, None, None, :]
        out = self.language(
            inputs_embeds=embedded, attention_mask={"full_attention": additive}, use_cache=False
        )
        return out.last_hidden_state, mask

    def unit(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Mean over real tokens, head, unit length: (B, D) float32."""
        share = mask.float() / mask.sum(1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            return F.normalize(self.head((hidden.float() * share[..., None]).sum(1)), dim=-1)


@dataclass(frozen=True, slots=True)
class Asked:
    """One batch: labels, shown (N, V), places (N, V, 6); scene, answer, region (B,), ids (B, T)."""

    labels: np.ndarray
    places: np.ndarray
    shown: np.ndarray
    scene: np.ndarray
    ids: np.ndarray
    answer: np.ndarray
    region: np.ndarray
    grid: tuple[int, int]


class Prompter:
    """Items -> padded ids, through the same prompts and template as the finished model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.chat = Chat(wrapped, CHAT_TEMPLATE, token_id(tokenizer, IMAGE_TOKEN))
        self.pad = token_id(tokenizer, PAD_TOKEN)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(B, T) int64 of plain texts."""
        return self._padded([self.chat.encode(Item(text)) for text in texts])

    def asked(self, instructions: Sequence[str | None], visual: int) -> np.ndarray:
        """(B, T) int64 of an image of `visual` tokens with each instruction, None for without."""
        shown = [self.chat.image_token_id] * visual
        rows = []
        for instruction in instructions:
            ids = self.chat.encode(Item(image="x", instruction=instruction))
            place = ids.index(self.chat.image_token_id)
            rows.append([*ids[:place], *shown, *ids[place + 1 :]])
        return self._padded(rows)

    def _padded(self, rows: list[list[int]]) -> np.ndarray:
        out = np.full((len(rows), max(map(len, rows))), self.pad, dtype=np.int64)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids)] = ids
        return out


def choose(found: list[Question], rng: np.random.Generator) -> Question:
    """One question, kinds drawn by `KIND_SHARES` whatever their number."""
    kinds = sorted({q.kind for q in found})
    weight = np.array([KIND_SHARES[k] for k in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weight / weight.sum()))]
    of_kind = [q for q in found if q.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))]


def wording(question: Question, rng: np.random.Generator) -> str:
    """The instruction or a paraphrase, now and then with a capital or without its question mark."""
    forms = (question.instruction, *question.paraphrases)
    text = forms[int(rng.integers(len(forms)))] if rng.random() < 0.75 else forms[0]
    if rng.random() < 0.15:
        text = text.rstrip("?")
    return text[0].upper() + text[1:] if rng.random() < 0.15 else text


class AskStream:
    """`Asked` batches by step number: two questions of each scene."""

    def __init__(self, tokenizer: Tokenizer, seed: int, scenes: int) -> None:
        self.prompter, self.seed, self.scenes = Prompter(tokenizer), seed, scenes
        self.answers = {text: i for i, text in enumerate(all_answers())}

    def make(self, step: int) -> Asked:
        rng = np.random.default_rng((self.seed, step, 13))
        grid = GRIDS[int(rng.choice(len(GRIDS), p=GRID_SHARES))]
        seen, scene, asked, answer, region = [], [], [], [], []
        for i in range(self.scenes):
            drawn = make_scene(self.seed, step * self.scenes + i)
            seen.append(annotate(drawn, *grid))
            found = questions(drawn)
            for _ in range(2):
                question = choose(found, rng)
                scene.append(i)
                asked.append(wording(question, rng))
                answer.append(self.answers[question.answer])
                region.append(0 if question.region is None else question.region + 1)
        labels, places, shown = (np.stack(c) for c in zip(*seen, strict=True))
        ids = self.prompter.asked(asked, grid[0] * grid[1])
        return Asked(
            labels, places, shown, np.array(scene), ids, np.array(answer), np.array(region), grid
        )


def blurred(book: Codebook, labels: Tensor, places: Tensor) -> Tensor:
    """Visual tokens as an honest eye gives them: some like another thing, all a little off."""
    doubt = torch.rand(labels.shape) * 0.6 * (torch.rand(labels.shape) < 0.3)
    other = torch.randint(len(THINGS), labels.shape)
    codes = (1 - doubt)[..., None] * book.codes[labels] + doubt[..., None] * book.codes[other]
    places = places + 0.06 * torch.randn(places.shape)
    return codes + places @ book.places + 0.02 * torch.randn(*labels.shape, book.codes.shape[1])


def answer_loss(
    asker: Asker, query: Tensor, answer: Tensor, answer_ids: Tensor, extra: int, book: Codebook
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of queries (B, D) over the batch's own answers and `extra` others.

    A question and its answer are also both drawn to the answer's code, each on its own: without
    that, neither knows for thousands of steps where the other will be. Gives the share of queries
    that rank their answer first among the candidates, too.
    """
    own = answer.unique()
    rest = torch.randperm(len(answer_ids))
    rest = rest[~torch.isin(rest, own)][:extra]
    picked = torch.cat([own, rest])
    candidates = asker.unit(*asker.hidden(answer_ids[picked]))
    scores = query @ candidates.T / asker.temperature()
    target = torch.searchsorted(own, answer)
    loss = F.cross_entropy(scores, target)
    for vectors, code in ((query, answer), (candidates, picked)):
        loss = loss + F.cross_entropy(ANCHOR_SHARPNESS * vectors @ book.codes.T, code)
    return loss, (scores.argmax(-1) == target).float().mean()


def ask_loss(
    asker: Asker, batch: Asked, visual: Tensor, answer_ids: Tensor, extra: int, book: Codebook
) -> tuple[Tensor, Tensor]:
    """Answer loss plus pointing loss for visual tokens (N, V, D) of the scenes; accuracy."""
    scene = torch.as_tensor(batch.scene)
    ids = torch.as_tensor(batch.ids)
    hidden, mask = asker.hidden(ids, visual[scene])
    loss, right = answer_loss(
        asker, asker.unit(hidden, mask), torch.as_tensor(batch.answer), answer_ids, extra, book
    )
    where = ids == asker.image_id
    points = asker.pointer(hidden[where].float()).view(len(ids), -1)
    meant = (torch.as_tensor(batch.shown)[scene] == torch.as_tensor(batch.region)[:, None]).float()
    pointing = F.binary_cross_entropy_with_logits(points, meant)
    return loss + pointing, right


def schedule(step: int) -> float:
    """Share of the rate: 72 steps of warm-up, then 1; the next lesson brings it down."""
    return min(1.0, (step + 1) / 72)


def learn_to_answer(
    out: Path,
    tokenizer: Tokenizer,
    steps: int,
    *,
    scenes: int = 64,
    rate: float = 8e-4,
    seed: int = 3,
    extra: int = 32,
) -> Path:
    """Lesson three; the weights of the `Asker` go to `out`."""
    asker, book = Asker(tokenizer), Codebook(WIDTH)
    answer_ids = torch.from_numpy(Prompter(tokenizer).texts(all_answers()))

    def loss_of(batch: Asked) -> tuple[Tensor, Tensor, int]:
        visual = blurred(book, torch.as_tensor(batch.labels), torch.as_tensor(batch.places))
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = ask_loss(asker, batch, visual, answer_ids, extra, book)
        return loss, right, len(batch.ids)

    return learn(
        asker,
        out,
        steps=steps,
        stream=AskStream(tokenizer, seed, scenes),
        loss_of=loss_of,
        rate_at=lambda step: rate * schedule(step),
        tau=asker.tau,
    )

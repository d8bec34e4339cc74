"""Lessons three and four: the language model learns to answer, then from what vision really says.

Lesson three needs no picture: the query is the token sequence of an image with an instruction, the
visual tokens being codes (`world.Codebook`) with some noise; the candidates are the answers of the
whole batch and more, through the same language model. A second loss asks of every visual token
whether it shows what the instruction means: with it, binding comes within minutes and not after a
long plateau.

In lesson four the visual tokens come from the vision encoder, which rests. Of eight batches, seven
are instructions and answers, one is images alone and their captions, so that a picture without a
question means its whole caption when stage 1 begins.

Shapes: `B` queries, `T` tokens, `V` visual tokens, `N` scenes, `C` candidates, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from abc_embed.chat import IMAGE_TOKEN, Chat
from abc_embed.errors import TrainingError
from abc_embed.head import Head
from abc_embed.inputs import Item
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import (
    Question,
    all_answers,
    caption,
    hard_captions,
    questions,
)
from abc_embed.scenes.things import THINGS
from experiments.curriculum.lesson import learn, to_device
from experiments.curriculum.tokenizer import CHAT_TEMPLATE
from experiments.curriculum.vision import GROUPED_ATTENTION, WIDTH, encode, new_vision
from experiments.curriculum.world import Codebook, annotate, draw, patches, sample_grid, stack

KIND_SHARES = {"place": 0.36, "relation": 0.30, "kind": 0.12, "size": 0.13, "background": 0.09}
HEAD_HIDDEN = 1024
ANCHOR_SHARPNESS = 20.0
CAPTION_EVERY = 8
"""One of so many batches of lesson four is of captions."""
PLAIN_ATTENTION = "abc_embed_curriculum_plain"
PAD_TOKEN = "<|endoftext|>"


def _plain_attention(
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


AttentionInterface.register(PLAIN_ATTENTION, _plain_attention)


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
    """Number of a token.

    Raises:
        TrainingError: the tokenizer does not have it.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise TrainingError(f"the tokenizer has no {token}; make it with tokenizer.make_tokenizer")
    return int(number)


class LanguageEmbedder(nn.Module):
    """Language model, head, temperature and the aid that points at tokens; no vision encoder."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.language = Qwen2VLTextModel(text_config(tokenizer.get_vocab_size()))
        self.language.config._attn_implementation = PLAIN_ATTENTION
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
        """Last hidden state `(B, T, D)` and mask `(B, T)` of ids `(B, T)`, visual `(B, V, D)`."""
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

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Mean over real tokens, head, unit length: `(B, D)` float32."""
        share = mask.float() / mask.sum(1, keepdim=True)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.normalize(self.head((hidden.float() * share[..., None]).sum(1)), dim=-1)


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions about some scenes: `labels` and `shown` `(N, V)` and `places` `(N, V, 6)` of the
    scenes as in `annotate`; of each question `scene` and `answer` (by number), what is meant by
    `region` (as in `shown`), all `(B,)`, and its `ids` `(B, T)`."""

    labels: Tensor
    places: Tensor
    shown: Tensor
    scene: Tensor
    ids: Tensor
    answer: Tensor
    region: Tensor
    grid: tuple[int, int]


class PromptTokenizer:
    """Items -> padded ids, through the same prompts and template as the finished model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.chat = Chat(wrapped, CHAT_TEMPLATE, token_id(tokenizer, IMAGE_TOKEN))
        self.pad = token_id(tokenizer, PAD_TOKEN)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """`(B, T)` int64 of plain texts."""
        return self._padded([self.chat.encode(Item(text)) for text in texts])

    def images(self, instructions: Sequence[str | None], visual: int) -> Tensor:
        """`(B, T)` int64 of an image of `visual` tokens with each instruction, None for without."""
        image_tokens = [self.chat.image_token_id] * visual
        rows = []
        for instruction in instructions:
            ids = self.chat.encode(Item(image="x", instruction=instruction))
            index = ids.index(self.chat.image_token_id)
            rows.append([*ids[:index], *image_tokens, *ids[index + 1 :]])
        return self._padded(rows)

    def _padded(self, rows: list[list[int]]) -> Tensor:
        return pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.pad
        )


def sample_question(candidates: list[Question], rng: np.random.Generator) -> Question:
    """One question, kinds drawn by `KIND_SHARES` whatever their number."""
    kinds = sorted({q.kind for q in candidates})
    weight = np.array([KIND_SHARES[k] for k in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weight / weight.sum()))]
    of_kind = [q for q in candidates if q.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))]


def sample_wording(question: Question, rng: np.random.Generator) -> str:
    """The instruction or a paraphrase, now and then with a capital or without its question mark."""
    forms = (question.instruction, *question.paraphrases)
    text = forms[int(rng.integers(len(forms)))] if rng.random() < 0.75 else forms[0]
    if rng.random() < 0.15:
        text = text.rstrip("?")
    return text[0].upper() + text[1:] if rng.random() < 0.15 else text


class QuestionStream:
    """`Questions` by step number: two of each scene."""

    def __init__(self, tokenizer: Tokenizer, seed: int, scenes: int) -> None:
        self.prompts, self.seed, self.scenes = PromptTokenizer(tokenizer), seed, scenes
        self.answers = {text: i for i, text in enumerate(all_answers())}

    def make(self, step: int) -> Questions:
        rng = np.random.default_rng((self.seed, step, 13))
        grid = sample_grid(rng)
        annotations, scene_numbers, instructions, answers, regions = [], [], [], [], []
        for i in range(self.scenes):
            scene = make_scene(self.seed, step * self.scenes + i)
            annotations.append(annotate(scene, *grid))
            candidates = questions(scene)
            for _ in range(2):
                question = sample_question(candidates, rng)
                scene_numbers.append(i)
                instructions.append(sample_wording(question, rng))
                answers.append(self.answers[question.answer])
                regions.append(0 if question.region is None else question.region + 1)
        labels, places, shown = map(stack, zip(*annotations, strict=True))
        return Questions(
            labels=labels,
            places=places,
            shown=shown,
            scene=torch.tensor(scene_numbers),
            ids=self.prompts.images(instructions, grid[0] * grid[1]),
            answer=torch.tensor(answers),
            region=torch.tensor(regions),
            grid=grid,
        )


def noisy_tokens(book: Codebook, labels: Tensor, places: Tensor) -> Tensor:
    """Visual tokens as an encoder may give them: some like another thing, all a little off."""
    device = labels.device
    doubt = torch.rand(labels.shape, device=device) * 0.6
    doubt = doubt * (torch.rand(labels.shape, device=device) < 0.3)
    other = torch.randint(len(THINGS), labels.shape, device=device)
    codes = (1 - doubt)[..., None] * book.codes[labels] + doubt[..., None] * book.codes[other]
    places = places + 0.06 * torch.randn(places.shape, device=device)
    return codes + places @ book.places + 0.02 * torch.randn(codes.shape, device=device)


def answer_loss(
    model: LanguageEmbedder,
    query: Tensor,
    answer: Tensor,
    answer_ids: Tensor,
    extra: int,
    book: Codebook,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of queries `(B, D)` over the batch's own answers and `extra` others.

    A question and its answer are also both drawn to the answer's code, each on its own: without
    that, neither knows for thousands of steps where the other will be. Gives the share of queries
    that rank their answer first among the candidates, too.
    """
    own = answer.unique()
    rest = torch.randperm(len(answer_ids), device=answer.device)
    chosen = torch.cat([own, rest[~torch.isin(rest, own)][:extra]])
    candidates = model.pool(*model.hidden(answer_ids[chosen]))
    scores = query @ candidates.T / model.temperature()
    target = torch.searchsorted(own, answer)
    loss = F.cross_entropy(scores, target)
    for vectors, code in ((query, answer), (candidates, chosen)):
        loss = loss + F.cross_entropy(ANCHOR_SHARPNESS * vectors @ book.codes.T, code)
    return loss, (scores.argmax(-1) == target).float().mean()


def question_loss(
    model: LanguageEmbedder,
    batch: Questions,
    visual: Tensor,
    answer_ids: Tensor,
    extra: int,
    book: Codebook,
) -> tuple[Tensor, Tensor]:
    """Answer loss plus pointing loss for visual tokens `(N, V, D)` of the scenes; accuracy."""
    hidden, mask = model.hidden(batch.ids, visual[batch.scene])
    loss, accuracy = answer_loss(
        model, model.pool(hidden, mask), batch.answer, answer_ids, extra, book
    )
    is_visual = batch.ids == model.image_id
    points = model.pointer(hidden[is_visual].float()).view(len(batch.ids), -1)
    meant = (batch.shown[batch.scene] == batch.region[:, None]).float()
    pointing = F.binary_cross_entropy_with_logits(points, meant)
    return loss + pointing, accuracy


def asking_schedule(step: int) -> float:
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
    device: str = "cpu",
    workers: int = 1,
) -> Path:
    """Lesson three; the weights of the `LanguageEmbedder` go to `out`."""
    model, book = LanguageEmbedder(tokenizer).to(device), Codebook(WIDTH, device)
    answer_ids = PromptTokenizer(tokenizer).texts(all_answers()).to(device)

    def loss_of(batch: Questions) -> tuple[Tensor, Tensor, int]:
        batch = to_device(batch, device)
        visual = noisy_tokens(book, batch.labels, batch.places)
        with torch.autocast(visual.device.type, torch.bfloat16):
            loss, accuracy = question_loss(model, batch, visual, answer_ids, extra, book)
        return loss, accuracy, len(batch.ids)

    return learn(
        model,
        out,
        steps=steps,
        stream=QuestionStream(tokenizer, seed, scenes),
        loss_of=loss_of,
        rate_at=lambda step: rate * asking_schedule(step),
        tau=model.tau,
        workers=workers,
    )


# -- lesson four -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PictureQueries:
    """Pictures `(N, H, W, 3)` uint8, with either questions about them or captions of them: ids of
    the image-only queries, and of 2 N texts, the right ones first."""

    pixels: Tensor
    grid: tuple[int, int]
    questions: Questions | None
    captions: tuple[Tensor, Tensor] | None


class PictureStream:
    """`PictureQueries` by step number; every eighth has captions."""

    def __init__(self, tokenizer: Tokenizer, seed: int, scenes: int) -> None:
        self.questions, self.seed, self.scenes = (
            QuestionStream(tokenizer, seed, scenes),
            seed,
            scenes,
        )

    def make(self, step: int) -> PictureQueries:
        rng = np.random.default_rng((self.seed, step, 17))
        asked = self.questions.make(step) if step % CAPTION_EVERY else None
        grid = asked.grid if asked else sample_grid(rng)
        scenes = [make_scene(self.seed, step * self.scenes + i) for i in range(self.scenes)]
        zooms = rng.choice((1.0, 1.0, 1.6, 2.3), len(scenes))
        pictures = [draw(s, *grid, zoom=float(z)) for s, z in zip(scenes, zooms, strict=True)]
        pixels = stack(pictures)
        if asked:
            return PictureQueries(pixels, grid, asked, None)
        texts = [caption(s) for s in scenes] + [hard_captions(s, rng, 1)[0] for s in scenes]
        prompts = self.questions.prompts
        queries = prompts.images([None] * len(scenes), grid[0] * grid[1])
        return PictureQueries(pixels, grid, None, (queries, prompts.texts(texts)))


def caption_loss(
    model: LanguageEmbedder, visual: Tensor, queries: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Images `(N, V, D)` against N right captions and N nearly right ones: loss, accuracy."""
    query = model.pool(*model.hidden(queries, visual))
    candidates = model.pool(*model.hidden(texts))
    scores = query @ candidates.T / model.temperature()
    target = torch.arange(len(query), device=query.device)
    return F.cross_entropy(scores, target), (scores.argmax(-1) == target).float().mean()


def looking_schedule(progress: float) -> float:
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
    device: str = "cpu",
    workers: int = 1,
) -> Path:
    """Lesson four; the weights of the `LanguageEmbedder` go to `out`."""
    vision, model, book = new_vision(), LanguageEmbedder(tokenizer), Codebook(WIDTH, device)
    vision.config._attn_implementation = GROUPED_ATTENTION
    vision.load_state_dict(torch.load(vision_file, map_location="cpu"))
    nn.Module.to(vision, device).eval().requires_grad_(False)
    model.load_state_dict(torch.load(language_file, map_location="cpu"))
    model.to(device)
    answer_ids = PromptTokenizer(tokenizer).texts(all_answers()).to(device)

    def loss_of(batch: PictureQueries) -> tuple[Tensor, Tensor, int]:
        batch = to_device(batch, device)
        with torch.autocast(batch.pixels.device.type, torch.bfloat16):
            with torch.no_grad():
                tokens = encode(vision, patches(batch.pixels), len(batch.pixels), batch.grid)
            visual = tokens.float()
            if batch.questions is not None:
                asked = to_device(batch.questions, device)
                loss, accuracy = question_loss(model, asked, visual, answer_ids, extra, book)
                return loss, accuracy, len(asked.ids)
            queries, texts = (ids.to(device) for ids in batch.captions or ())
            loss, accuracy = caption_loss(model, visual, queries, texts)
        return loss, accuracy, len(queries)

    return learn(
        model,
        out,
        steps=steps,
        stream=PictureStream(tokenizer, seed, scenes),
        loss_of=loss_of,
        rate_at=lambda step: rate * looking_schedule(step / steps),
        tau=model.tau,
        workers=workers,
    )

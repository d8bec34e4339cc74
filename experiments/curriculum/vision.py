"""Lessons one and two: the vision encoder learns things, then places.

Every merged visual token must come out as the code of what it shows (`world.Codebook`):
cross-entropy over all things and backgrounds, and a squared error that also carries the place.

Shapes: `N` pictures, `P` patches and `V` visual tokens of one, `D` width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_position_ids

from abc_embed.scenes.things import THINGS
from experiments.curriculum.lesson import learn, to_device
from experiments.curriculum.world import Codebook, Pictures, SceneStream, patches

WIDTH = 256
GROUPED_ATTENTION = "abc_embed_curriculum_grouped"
PLACE_WEIGHT = 3.0
SIZE_WEIGHT = 6.0  # of width and height beside places: as fractions they vary a third as much
SHARPNESS = 16.0  # logits = SHARPNESS * (token · code)


def _grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    images = int(kwargs["abc_images"])  # type: ignore[call-overload]
    _, heads, total, dim = query.shape
    q, k, v = (
        t.view(heads, images, total // images, dim).transpose(0, 1) for t in (query, key, value)
    )
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() * scaling, dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).reshape(1, total, heads, dim), None


AttentionInterface.register(GROUPED_ATTENTION, _grouped_attention)


def vision_config() -> Qwen2VLVisionConfig:
    return Qwen2VLVisionConfig(
        depth=4,
        embed_dim=256,
        hidden_size=256,
        num_heads=8,
        mlp_ratio=4,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        in_channels=3,
        initializer_range=0.02,
    )


def new_vision(seed: int = 0) -> Qwen2VisionTransformerPretrainedModel:
    """Random weights with first tokens near zero: large wrong ones take minutes to unlearn."""
    torch.manual_seed(seed)
    vision = Qwen2VisionTransformerPretrainedModel(vision_config())
    nn.init.normal_(vision.get_parameter("merger.mlp.2.weight"), std=0.002)
    return vision


def encode(
    vision: Qwen2VisionTransformerPretrainedModel, x: Tensor, images: int, grid: tuple[int, int]
) -> Tensor:
    """One-frame patches `(N · P, 588)` of same-sized pictures -> visual tokens `(N, V, D)`.

    The same arithmetic as in transformers, but faster to train on a CPU: the patch convolution is
    a matrix product whose two equal frames add up, and all pictures share one attention call made
    of plain products (the backward pass of fused attention is slow here).
    """
    weight = vision.patch_embed.proj.weight.sum(2).flatten(1)
    hidden = F.linear(x, weight)
    thw = torch.tensor([[1, grid[0] * 2, grid[1] * 2]] * images, device=x.device)
    positions = vision.rotary_pos_emb(hidden, get_vision_position_ids(thw, 2, kwargs={}))
    ends = torch.tensor([0, hidden.shape[0]], dtype=torch.int32, device=x.device)
    for block in vision.blocks:
        hidden = block(hidden, cu_seqlens=ends, position_embeddings=positions, abc_images=images)
    merged: Tensor = vision.merger(hidden)
    return merged.view(images, grid[0] * grid[1], -1)


def token_loss(
    tokens: Tensor, labels: Tensor, places: Tensor, book: Codebook
) -> tuple[Tensor, Tensor]:
    """Loss of tokens `(N, V, D)` for labels `(N, V)` and places `(N, V, 6)`; accuracy on things."""
    tokens = tokens.float()
    logits = SHARPNESS * tokens @ book.codes.T
    thing = labels < len(THINGS)
    weight = torch.where(thing, 1.0, 0.25)
    cross = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(
        weight
    )
    error = tokens - book.tokens(labels, places)
    # The same error along the six place directions only, in the units of places. Without this
    # term names are learnt and places are not: one code outweighs six numbers.
    place_error = (error @ book.places.T / book.places.pow(2).sum(-1)).pow(2)
    place_error = place_error[..., :4].sum(-1) + SIZE_WEIGHT * place_error[..., 4:].sum(-1)
    loss = cross + 0.3 * error.pow(2).sum(-1) + PLACE_WEIGHT * place_error
    loss = (loss * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == labels).float()
    return loss, right[thing].mean()


def schedule(step: int, steps: int, *, settle: bool) -> float:
    """Share of the rate: 24 steps up, then 1; with `settle` down to 2 % in the last 35 %."""
    progress = step / steps
    if step < 24:
        return (step + 1) / 24
    return 1.0 if not settle or progress < 0.65 else max(0.02, (1.0 - progress) / 0.35)


def learn_to_see(
    out: Path,
    steps: int,
    *,
    singles: bool,
    start: Path | None = None,
    batch: int,
    rate: float,
    seed: int,
    device: str = "cpu",
    workers: int = 1,
) -> Path:
    """Lesson one (`singles`) or two, from the weights in `start` if given; weights go to `out`."""
    vision, book = new_vision(), Codebook(WIDTH, device)
    vision.config._attn_implementation = GROUPED_ATTENTION
    if start is not None:
        vision.load_state_dict(torch.load(start, map_location="cpu"))
    nn.Module.to(vision, device).train()

    def loss_of(batch: Pictures) -> tuple[Tensor, Tensor, int]:
        batch = to_device(batch, device)
        with torch.autocast(batch.pixels.device.type, torch.bfloat16):
            tokens = encode(vision, patches(batch.pixels), len(batch.pixels), batch.grid)
        loss, accuracy = token_loss(tokens, batch.labels, batch.places, book)
        return loss, accuracy, len(batch.pixels)

    return learn(
        vision,
        out,
        steps=steps,
        stream=SceneStream(seed, batch, singles=singles),
        loss_of=loss_of,
        rate_at=lambda step: rate * schedule(step, steps, settle=not singles),
        workers=workers,
    )

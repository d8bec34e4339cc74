"""A vision-language model without its output layer, with attention both ways.

`Backbone` says what the rest needs of a VLM, and this file says it for Qwen2-VL. A further family
is one file in families/, named after its `model_type` and imported when it is asked for.
No class of transformers is touched: the VLM is a member, set up by its configuration and the public
flags of its modules. Three silent traps live here. Attention must be told twice to look both ways
(see `make_bidirectional`); positions must be explicit; and transformers' vision attention loops
over images one by one unless flash attention is installed, most of a CPU's time.

Shapes: B items, T tokens, D width, P patches, C numbers per patch, U images, V merged visual tokens
of one image, W width of a visual token (D unless the family says otherwise), H heads, L patches of
one image or window, d width of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    Qwen2VLConfig,
    Qwen2VLModel,
)
from transformers.vision_utils import get_vision_position_ids

from abc_embed import lean
from abc_embed.errors import CheckpointError, ConfigError
from abc_embed.lean import AttentionGroups, PatchEmbedding, equal_runs
from abc_embed.pixels import ImageBudget, budget_values

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""What may be asked for as `attn`. "eager" is the slow, plain reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """Sizes of a transformer."""

    layers: int
    width: int
    inner: int
    """Width inside the MLP."""
    heads: int
    """Width of all query heads together."""

    @classmethod
    def of(cls, config: Any) -> "EncoderShape":
        """As a configuration with the usual names says."""
        width, head_width = int(config.hidden_size), getattr(config, "head_dim", None)
        return cls(
            layers=int(config.num_hidden_layers),
            width=width,
            inner=int(config.intermediate_size),
            heads=int(config.num_attention_heads) * int(head_width) if head_width else width,
        )


class Backbone(nn.Module, ABC):
    """What a VLM must offer. All weights live under `self.vlm`, a model of transformers.

    A new one has fresh random weights (or none, under `torch.device("meta")`).
    """

    config_class: ClassVar[type[PretrainedConfig]]
    """Its configuration in transformers."""
    vlm_class: ClassVar[type[nn.Module]]
    """The model of transformers, without output layer."""
    language_sites: ClassVar[str] = (
        r"language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    )
    """Regular expression (full match) of the layers of `vlm` that take LoRA in both stages."""
    vision_sites: ClassVar[str]
    """The same for the vision encoder, stage 1 only."""
    own_prefixes: ClassVar[tuple[str, ...]]
    """Beginnings of all names in `vlm`; files may have them bare or behind `model.`."""
    key_renames: ClassVar[tuple[tuple[str, str], ...]]
    """(prefix in published files, prefix in `vlm`): pinned strings, so that no release of
    transformers can move them."""
    ignored_weights: ClassVar[frozenset[str]]
    """Tensors of a published base that are left out knowingly: its output layer."""

    def __init__(self, config: PretrainedConfig, attn: str = "sdpa") -> None:
        super().__init__()
        config = deepcopy(config)  # The caller's stays as it is.
        text: Any = config.text_config
        text.is_causal = False
        text.use_cache = False
        config._attn_implementation = {
            "": attn,
            "text_config": attn,
            "vision_config": attn,
        }
        self.attn = attn
        self.is_compiled = False
        """Whether `compile_layers` was called."""
        self.weights = ""
        """The format of fewer bits that weights have; see quantization.py."""
        self.vlm: Any = self.vlm_class(config)
        make_bidirectional(self.vlm)
        self.use_lean_patches()
        lean.use_lean_modules(self.vlm, attn)
        self.hidden_size = int(text.hidden_size)
        """D: width of the last hidden state."""
        self.merge_size = self.read_merge_size(config)
        self.gradient_checkpointing = False
        """Whether activations are recomputed in the backward pass (only in training mode)."""

    @abstractmethod
    def use_lean_patches(self) -> None:
        """Put a `PatchProjection` in the place of the convolution that reads the patches."""

    @staticmethod
    @abstractmethod
    def read_merge_size(config: Any) -> int:
        """Patches per side that become one visual token."""

    @classmethod
    def read_budget(cls, settings: dict[str, Any], config: dict[str, Any]) -> ImageBudget:
        """The pixel budget in `settings`, a model's preprocessor_config.json, or ours.

        `config` is the model's config.json, where some families keep a part of it.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or cannot be.
        """
        return ImageBudget(**budget_values(settings))

    @classmethod
    def chat_template(cls, template: str) -> str:
        """A folder's chat template, with what the family's own processor would add to it.

        One that has the addition already, as those that we saved, stays as it is.
        """
        return template

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As a module does, but the tables of angles stay float32, as loading makes them."""
        tables = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, moved in list(self.named_buffers()):
            if moved.dtype != tables[name].dtype:
                place, _, last = name.rpartition(".")
                setattr(self.get_submodule(place), last, tables[name].to(moved.device))
        return self

    def restore_buffers(self) -> None:
        """Make the buffers that are in no file anew, after a build on the meta device."""
        language = self.vlm.language_model
        language.rotary_emb = type(language.rotary_emb)(language.config)

    @abstractmethod
    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches `(sum P, C)` of U images, grids `(U, 3)` -> visual tokens `(sum V, W)`.

        A patch has all its frames or, as in `PixelBatch.patches`, one. Grids stay on the CPU.
        """

    def layers(self) -> list[nn.Module]:
        """The layers of both encoders, which hold nearly all weights and take nearly all time."""
        lists = (module for module in self.vlm.modules() if isinstance(module, nn.ModuleList))
        return [layer for layer_list in lists for layer in layer_list]

    def vision_layers(self) -> Sequence[nn.Module]:
        """The layers of the vision encoder whose states are `(sum P, W)`, if they are."""
        return ()

    def compile_layers(self, backend: str = "inductor") -> None:
        """Have torch compile each of `layers`, once for all shapes, when it is next used."""
        # Runs of images differ from batch to batch: compiled for each, it would never be done.
        lean.attend_in_groups = torch.compiler.disable(lean.attend_in_groups)
        for layer in self.layers():
            layer.compile(dynamic=True, backend=backend)
        self.is_compiled = True

    def visual_lengths(self, grid_thw: Tensor) -> Tensor:
        """Grids `(U, 3)` -> V of each image `(U,)` int64."""
        lengths: Tensor = grid_thw.prod(dim=-1) // self.merge_size**2
        return lengths

    def language_shape(self) -> EncoderShape:
        """Sizes of the language model."""
        return EncoderShape.of(self.vlm.config.text_config)

    def vision_shape(self) -> EncoderShape:
        """Sizes of the vision encoder."""
        return EncoderShape.of(self.vlm.config.vision_config)

    def language(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual_tokens: Tensor | None,
    ) -> Tensor:
        """Last hidden states after the final norm, `(B, T, D)`; undefined where padded.

        `input_ids` `(B, T)` with V placeholders per image, `attention_mask` `(B, T)` bool,
        `position_ids` `(3, B, T)`, `visual_tokens` `(sum over rows of V, W)` in row order.
        """
        embeddings = self.vlm.get_input_embeddings()(input_ids)
        is_visual = input_ids == int(self.vlm.config.image_token_id)
        places = int(is_visual.sum())
        count = 0 if visual_tokens is None else len(visual_tokens)
        if places != count:
            raise ValueError(f"{places} image placeholders but {count} visual tokens")
        extra: dict[str, Any] = {}
        if visual_tokens is not None:
            visual_tokens = visual_tokens.to(embeddings.dtype)
            embeddings, extra = self.merge_visual_tokens(embeddings, is_visual, visual_tokens)
        hidden: Tensor = self.vlm.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=self._positions(position_ids),
            use_cache=False,
            **extra,
        ).last_hidden_state
        return hidden

    def _positions(self, position_ids: Tensor) -> Tensor:
        """Positions `(3, B, T)` as the language model takes them."""
        return position_ids

    def merge_visual_tokens(
        self, embeddings: Tensor, is_visual: Tensor, visual_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings `(B, T, D)` with images in their places, and further arguments."""
        return embeddings.masked_scatter(is_visual.unsqueeze(-1), visual_tokens), {}

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in both encoders; acts in training mode only."""
        self.gradient_checkpointing = enabled
        if enabled:
            # Not reentrant: the only kind that works when the inputs of a layer need no gradient,
            # as with LoRA on frozen embeddings.
            self.vlm.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.vlm.activation_checkpointing_disable()


REGISTRY: dict[str, type[Backbone]] = {}
"""Families at hand by the `model_type` of their config.json."""

LAZY_REGISTRY: dict[str, str] = {
    file.stem: f"abc_embed.families.{file.stem}"
    for file in sorted(Path(__file__).with_name("families").glob("[!_]*.py"))
}
"""`model_type` -> the module that registers it, imported when a checkpoint asks for it: each file
in families/ has the name of its `model_type`."""


def register(model_type: str) -> Callable[[type[Backbone]], type[Backbone]]:
    """Class decorator: this backbone serves checkpoints whose config says `model_type`."""

    def decorator(family: type[Backbone]) -> type[Backbone]:
        REGISTRY[model_type] = family
        return family

    return decorator


def family_of(model_type: str) -> type[Backbone]:
    """The backbone class that serves checkpoints whose config says `model_type`.

    Raises:
        CheckpointError: a family that is not known.
    """
    if model_type not in REGISTRY and model_type in LAZY_REGISTRY:
        import_module(LAZY_REGISTRY[model_type])
    if model_type not in REGISTRY:
        known = ", ".join(sorted({*REGISTRY, *LAZY_REGISTRY}))
        raise CheckpointError(
            f"the model family {model_type!r} is not known; use a checkpoint of: {known}"
        )
    return REGISTRY[model_type]


def parse_config(values: dict[str, Any]) -> PretrainedConfig:
    """The content of a config.json -> a configuration of transformers.

    Raises:
        CheckpointError: a family that is not known, or a value that cannot be.
    """
    values = dict(values)
    model_type = str(values.pop("model_type", None))
    family = family_of(model_type)
    try:
        return family.config_class(**values)
    except Exception as problem:
        reason = " ".join(str(problem).split())
        raise CheckpointError(f"config.json holds a value that cannot be: {reason}") from problem


def build_backbone(config: PretrainedConfig, *, attn: str = "sdpa") -> Backbone:
    """A backbone with fresh weights, both encoders looking both ways.

    Raises:
        CheckpointError: an unknown family, or sizes that do not go together.
        ConfigError: `attn` is unknown, or needs a package that is not installed.
    """
    if attn not in ATTENTION:
        raise ConfigError(f"attn is {attn!r}; use one of: {', '.join(ATTENTION)}")
    family = family_of(config.model_type)
    if not isinstance(config, family.config_class):
        raise CheckpointError(f"a {type(config).__name__} describes no {config.model_type!r}")
    try:
        return family(config, attn)
    except ImportError as problem:
        raise ConfigError(
            f"attn={attn!r} needs a package that is not installed; use attn='sdpa'"
        ) from problem
    except Exception as problem:
        why = f"{type(problem).__name__}: {' '.join(str(problem).split()):.200}"
        raise CheckpointError(f"config.json holds values that do not fit ({why})") from problem


@register("qwen2_vl")
class Qwen2VLBackbone(Backbone):
    """Qwen2-VL of any size. Later Qwen-VL families derive from it and say what differs."""

    config_class: ClassVar[type[PretrainedConfig]] = Qwen2VLConfig
    vlm_class: ClassVar[type[nn.Module]] = Qwen2VLModel
    vision_sites = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
    own_prefixes = ("language_model.", "visual.")
    key_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        ("model.embed_tokens.", "language_model.embed_tokens."),
        ("model.layers.", "language_model.layers."),
        ("model.norm.", "language_model.norm."),
        ("visual.", "visual."),
    )
    ignored_weights = frozenset({"lm_head.weight"})

    def use_lean_patches(self) -> None:
        self.vlm.visual.patch_embed = PatchEmbedding(self.vlm.visual.patch_embed)

    @staticmethod
    def read_merge_size(config: Any) -> int:
        return int(config.vision_config.spatial_merge_size)

    def restore_buffers(self) -> None:
        super().restore_buffers()
        visual = self.vlm.visual
        visual.rotary_pos_emb = type(visual.rotary_pos_emb)(visual.config)

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        grids = [(int(t), int(h), int(w)) for t, h, w in grid_thw.tolist()]
        # Images with equally many patches go side by side, so that each such run is one attention
        # call. Their shapes may differ: positions are per patch.
        order = sorted(range(len(grids)), key=lambda u: grids[u][1] * grids[u][2])
        sorted_grids = [grids[u] for u in order]
        in_order = sorted_grids == grids
        if not in_order:
            patches = torch.split(pixel_values, [t * h * w for t, h, w in grids])
            pixel_values = torch.cat([patches[u] for u in order])
        output = self.vlm.visual(
            pixel_values.to(self.vlm.visual.patch_embed.proj.weight.dtype),
            grid_thw=torch.tensor(sorted_grids, device=pixel_values.device),
            **self._vision_plan(sorted_grids, pixel_values.device),
        )
        tokens = self._visual_tokens(output)
        if in_order:
            return tokens
        lengths = [t * h * w // self.merge_size**2 for t, h, w in sorted_grids]
        parts = dict(zip(order, torch.split(tokens, lengths), strict=True))
        return torch.cat([parts[u] for u in range(len(order))])

    def vision_layers(self) -> Sequence[nn.Module]:
        return list(self.vlm.visual.blocks)

    def vision_shape(self) -> EncoderShape:
        blocks = self.vlm.visual.blocks
        width = int(blocks[0].attn.qkv.in_features)
        linears = (m for m in blocks[0].mlp.modules() if isinstance(m, nn.Linear))
        inner = max(linear.out_features for linear in linears)
        return EncoderShape(layers=len(blocks), width=width, inner=inner, heads=width)

    def _vision_plan(
        self, grids: Sequence[tuple[int, int, int]], device: torch.device
    ) -> dict[str, Any]:
        """Precomputed arguments that transformers' vision encoder accepts and hands on."""
        positions = {
            grid: get_vision_position_ids(torch.tensor([grid], device=device), self.merge_size)
            for grid in set(grids)
        }
        plan: dict[str, Any] = {"position_ids": torch.cat([positions[grid] for grid in grids])}
        if self.attn == "sdpa":
            groups = equal_runs([h * w for t, h, w in grids for _ in range(t)])
            total = sum(count * length for count, length in groups)
            modules = (block.attn for block in self.vlm.visual.blocks)
            plan["abc_groups"] = AttentionGroups(dict.fromkeys(modules, groups))
            # One segment: the split into images is done by `attend_in_groups`, not by transformers.
            plan["cu_seqlens"] = torch.tensor([0, total], dtype=torch.int32, device=device)
        return plan

    def _visual_tokens(self, output: Any) -> Tensor:
        """What the vision encoder returned -> visual tokens `(sum V, W)`."""
        return output.pooler_output  # type: ignore[no-any-return]


def make_bidirectional(vlm: Any) -> None:
    """Turn off causality in the attention modules themselves.

    `text_config.is_causal = False` shapes the *mask*, but for a batch without padding transformers
    drops the mask, and SDPA and flash attention then go by a flag. Some releases of transformers 5
    hand them the configuration's, others let them ask the module, which says causal: a lone item
    would silently be read left to right. So both are set, and a test looks at a lone item.
    """
    for module in vlm.language_model.modules():
        if hasattr(module, "is_causal"):
            setattr(module, "is_causal", False)  # noqa: B010

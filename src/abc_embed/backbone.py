"""A vision-language model without its output layer, with attention both ways.

Does: define what the rest needs of a VLM (`Backbone`), and say it for Qwen2-VL. A further family
is one file in families/ and one line in `LAZY_REGISTRY`, imported when it is asked for.
Does not: load weights (weights.py), know prompts or positions (processor.py has both), pool, or
touch a class of transformers. The VLM is held as a member and set up by its configuration and the
public flags of its modules.
Why a class of ours at all: three silent traps live here. Attention must be told twice to look both
ways (see `make_bidirectional`); positions must be explicit; and transformers' vision attention
loops over images one by one unless flash attention is installed, most of a CPU's time.

Shapes: B items, T tokens, D width, P patches, C numbers per patch, U images, V merged visual tokens
of one image, W width of a visual token (D unless the family says otherwise), H heads, L patches of
one image or window, d width of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from itertools import groupby
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    PretrainedConfig,
    Qwen2VLConfig,
    Qwen2VLModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.vision_utils import get_vision_position_ids

from abc_embed.errors import CheckpointError, ConfigError

GROUPED_SDPA = "abc_embed_grouped_sdpa"
"""Name under which our vision attention is registered with transformers."""

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""What may be asked for as `attn`. "eager" is the slow, plain reference."""


class Backbone(nn.Module, ABC):
    """What a VLM must offer. All weights live under `self.vlm`, a model of transformers."""

    hidden_size: int
    """D: width of the last hidden state."""
    vlm: Any
    """The model of transformers, without output layer."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass (only in training mode)."""

    language_sites: ClassVar[str]
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

    @classmethod
    @abstractmethod
    def build(cls, config: PretrainedConfig, attn: str) -> "Backbone":
        """A backbone with fresh random weights (or none, under `torch.device("meta")`)."""

    @abstractmethod
    def restore_buffers(self) -> None:
        """Make the buffers that are in no file anew, after a build on the meta device."""

    @abstractmethod
    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches `(sum P, C)` of U images, grids `(U, 3)` -> visual tokens `(sum V, W)`."""

    @abstractmethod
    def visual_lengths(self, grid_thw: Tensor) -> Tensor:
        """Grids `(U, 3)` -> V of each image `(U,)` int64."""

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
        states = self.vlm.get_input_embeddings()(input_ids)
        places = input_ids == int(self.vlm.config.image_token_id)
        found = 0 if visual_tokens is None else len(visual_tokens)
        if int(places.sum()) != found:
            raise ValueError(f"{int(places.sum())} image placeholders but {found} visual tokens")
        extra: dict[str, Any] = {}
        if visual_tokens is not None:
            states, extra = self._show(states, places, visual_tokens.to(states.dtype))
        hidden: Tensor = self.vlm.language_model(
            inputs_embeds=states,
            attention_mask=attention_mask,
            position_ids=self._positions(position_ids),
            use_cache=False,
            **extra,
        ).last_hidden_state
        return hidden

    def _positions(self, position_ids: Tensor) -> Tensor:
        """Positions `(3, B, T)` as the language model takes them."""
        return position_ids

    def _show(
        self, states: Tensor, places: Tensor, visual_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings `(B, T, D)` with images in their places, and further arguments."""
        return states.masked_scatter(places.unsqueeze(-1), visual_tokens), {}

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
    "internvl": "abc_embed.families.internvl",
    "qwen2_5_vl": "abc_embed.families.qwen2_5_vl",
    "qwen3_vl": "abc_embed.families.qwen3_vl",
}
"""`model_type` -> the module that registers it, imported when a checkpoint asks for it."""


def register(model_type: str) -> Callable[[type[Backbone]], type[Backbone]]:
    """Class decorator: this backbone serves checkpoints whose config says `model_type`."""

    def keep(family: type[Backbone]) -> type[Backbone]:
        REGISTRY[model_type] = family
        return family

    return keep


def family_of(model_type: str) -> type[Backbone]:
    """The backbone class that serves checkpoints whose config says `model_type`.

    Raises: CheckpointError for a family that is not known.
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

    Raises: CheckpointError for a family that is not known, or a value that cannot be.
    """
    values = dict(values)
    model_type = str(values.pop("model_type", None))
    family_of(model_type)
    try:
        return AutoConfig.for_model(model_type, **values)
    except (StrictDataclassError, KeyError, TypeError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise CheckpointError(f"config.json holds a value that cannot be: {reason}") from problem


def build_backbone(config: PretrainedConfig, *, attn: str = "sdpa") -> Backbone:
    """A backbone with fresh weights, both encoders looking both ways.

    Raises: CheckpointError for an unknown family or sizes that do not go together, ConfigError for
    an `attn` that is unknown, or needs a package that is not installed.
    """
    if attn not in ATTENTION:
        raise ConfigError(f"attn is {attn!r}; use one of: {', '.join(ATTENTION)}")
    family = family_of(config.model_type)
    try:
        return family.build(config, attn)
    except ImportError as problem:
        raise ConfigError(
            f"attn={attn!r} needs a package that is not installed; use attn='sdpa'"
        ) from problem
    except (ValueError, ZeroDivisionError) as problem:
        raise CheckpointError(f"the sizes in config.json do not fit: {problem}") from problem


@register("qwen2_vl")
class Qwen2VLBackbone(Backbone):
    """Qwen2-VL of any size. Later Qwen-VL families derive from it and say what differs."""

    config_class: ClassVar[type[PretrainedConfig]] = Qwen2VLConfig
    vlm_class: ClassVar[type[nn.Module]] = Qwen2VLModel
    language_sites = (
        r"language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    )
    vision_sites = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
    own_prefixes = ("language_model.", "visual.")
    key_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        ("model.embed_tokens.", "language_model.embed_tokens."),
        ("model.layers.", "language_model.layers."),
        ("model.norm.", "language_model.norm."),
        ("visual.", "visual."),
    )
    ignored_weights = frozenset({"lm_head.weight"})

    def __init__(self, given: PretrainedConfig, attn: str = "sdpa") -> None:
        super().__init__()
        config: Any = deepcopy(given)  # The caller's stays as it is.
        text, vision = config.text_config, config.vision_config
        text.is_causal = False
        text.use_cache = False
        vision_attn = GROUPED_SDPA if attn == "sdpa" else attn
        config._attn_implementation = {"": attn, "text_config": attn, "vision_config": vision_attn}
        self.vlm = self.vlm_class(config)
        make_bidirectional(self.vlm.language_model)
        self.hidden_size = int(text.hidden_size)
        self._merge = int(vision.spatial_merge_size)

    @classmethod
    def build(cls, config: PretrainedConfig, attn: str) -> "Qwen2VLBackbone":
        if not isinstance(config, cls.config_class):
            wanted = cls.config_class.model_type
            raise CheckpointError(f"config.json describes {config.model_type!r}, not {wanted!r}")
        return cls(config, attn)

    def restore_buffers(self) -> None:
        visual, language = self.vlm.visual, self.vlm.language_model
        visual.rotary_pos_emb = type(visual.rotary_pos_emb)(visual.config)
        language.rotary_emb = type(language.rotary_emb)(language.config)

    def visual_lengths(self, grid_thw: Tensor) -> Tensor:
        return grid_thw.prod(dim=-1) // self._merge**2

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        grids = [(int(t), int(h), int(w)) for t, h, w in grid_thw.tolist()]
        # Images with equally many patches go side by side, so that each such run is one attention
        # call. Their shapes may differ: positions are per patch.
        order = sorted(range(len(grids)), key=lambda u: grids[u][1] * grids[u][2])
        patches = torch.split(pixel_values, [t * h * w for t, h, w in grids])
        sorted_grids = [grids[u] for u in order]
        output = self.vlm.visual(
            torch.cat([patches[u] for u in order]).to(self.vlm.visual.dtype),
            grid_thw=torch.tensor(sorted_grids, device=grid_thw.device),
            **self._vision_plan(sorted_grids, pixel_values.device),
        )
        tokens = self._visual_tokens(output)
        lengths = [t * h * w // self._merge**2 for t, h, w in sorted_grids]
        parts = dict(zip(order, torch.split(tokens, lengths), strict=True))
        return torch.cat([parts[u] for u in range(len(order))])

    def _vision_plan(
        self, grids: Sequence[tuple[int, int, int]], device: torch.device
    ) -> dict[str, Any]:
        """Precomputed arguments that transformers' vision encoder accepts and hands on."""
        positions = {
            grid: get_vision_position_ids(torch.tensor([grid], device=device), self._merge)
            for grid in set(grids)
        }
        plan: dict[str, Any] = {"position_ids": torch.cat([positions[grid] for grid in grids])}
        if self.vlm.visual.config._attn_implementation == GROUPED_SDPA:
            groups = equal_runs([h * w for t, h, w in grids for _ in range(t)])
            total = sum(count * length for count, length in groups)
            plan["abc_groups"] = dict.fromkeys((b.attn for b in self.vlm.visual.blocks), groups)
            # One segment: the split into images is done by `grouped_sdpa`, not by transformers.
            plan["cu_seqlens"] = torch.tensor([0, total], dtype=torch.int32, device=device)
        return plan

    def _visual_tokens(self, output: Any) -> Tensor:
        """What the vision encoder returned -> visual tokens `(sum V, W)`."""
        return output.pooler_output  # type: ignore[no-any-return]


def make_bidirectional(language_model: nn.Module) -> None:
    """Turn off causality in the attention modules themselves.

    `text_config.is_causal = False` shapes the *mask*, but for a batch without padding transformers
    drops the mask, and SDPA and flash attention then go by a flag. Some releases of transformers 5
    hand them the configuration's, others let them ask the module, which says causal: a lone item
    would silently be read left to right. So both are set, and a test looks at a lone item.
    """
    for module in language_model.modules():
        if hasattr(module, "is_causal"):
            setattr(module, "is_causal", False)  # noqa: B010


Groups = Sequence[tuple[int, int]]
"""(number of images or windows, L) of each run of equally long ones."""


def equal_runs(lengths: Sequence[int]) -> Groups:
    """L of each image or window, in order -> runs of equal L."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    abc_groups: Mapping[nn.Module, Groups],
    **options: Any,
) -> tuple[Tensor, None]:
    """Vision attention for images laid end to end: one call per size instead of one per image.

    `query`, `key`, `value`: `(1, H, sum L, d)`. `abc_groups`: for each attention module, the runs
    that it takes apart. Returns `(1, sum L, H, d)`, as transformers expects.
    """
    outputs, start = [], 0
    for count, length in abc_groups[module]:
        end = start + count * length
        # (1, H, count * L, d) -> (count, H, L, d): no image sees another.
        q, k, v = (
            x[0, :, start:end].reshape(x.shape[1], count, length, -1).transpose(0, 1)
            for x in (query, key, value)
        )
        out, _ = sdpa_attention_forward(module, q, k, v, attention_mask, **options)
        outputs.append(out.flatten(0, 1))
        start = end
    return torch.cat(outputs).unsqueeze(0), None


AttentionInterface.register(GROUPED_SDPA, grouped_sdpa)

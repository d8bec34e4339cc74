"""Item -> tensors: token ids, positions and pixels, of one item or of a batch.

transformers' own Qwen2-VL processor needs torchvision by default and ties pixels to text, while
here a picture is prepared (and later encoded) once, however many instructions are asked of it.
Tokens and pixels are the same, which the tests check.

Shapes: `B` items, `T` tokens, `N` views of a picture in `H` rows and `W` columns of pixels, `V`
visual tokens of a picture, `U` unique pictures of a batch.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from abc_embed.backbone import family_of
from abc_embed.chat import Chat, read_chat_template, read_tokenizer
from abc_embed.decoding import hold_memory
from abc_embed.errors import AspectError, CheckpointError, ConfigError, TextError, TextTooLongError
from abc_embed.inputs import DECODE_LIMIT, ImageInput, Item, Kind, describe_image, open_image
from abc_embed.pixels import ImageBudget, PixelBatch, Pixels, to_pixels
from abc_embed.runtime import to_device
from abc_embed.storage.json_files import read_json

__all__ = ["Batch", "Features", "ImageBudget", "Pixels", "Positions", "Processor"]

Positions = Literal["sequential", "mrope"]
Truncate: TypeAlias = Literal["error", "end"]
"""How positions count. `sequential`: 0 .. T-1, pictures included; the published weights were
trained so (paper, trap 1). `mrope`: Qwen2-VL's rows and columns inside a picture."""

_SETTINGS_FILE: Final = "preprocessor_config.json"
_MOST_VISUAL_TOKENS: Final = 1 << 20  # beyond it, a file is damaged

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One item as tensors, without a batch axis."""

    kind: Kind
    input_ids: Tensor
    """`(T,)` int64; the placeholder of a picture stands `V` times."""
    pixels: Tensor | None
    """`(N, H, W, 3)` uint8, or None for a text."""
    grid_thw: tuple[int, int, int] | None
    """Frames, rows and columns of patches."""
    image_key: str | None
    """Equal exactly when the resized pixels are equal."""

    @property
    def tokens(self) -> int:
        """`T`, the cost of this item."""
        return self.input_ids.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Several items as tensors: what a model eats."""

    input_ids: Tensor
    """`(B, T)` int64, padded on the right."""
    attention_mask: Tensor
    """`(B, T)` bool, True for a real token."""
    position_ids: Tensor
    """`(3, B, T)` int64: frame, row, column; three times the same if sequential; 0 where padded."""
    instructed: Tensor
    """`(B,)` bool: rows for which the stage-2 adapter is on."""
    pixels: PixelBatch | None
    """Of the `U` unique pictures."""
    image_grid_thw: Tensor | None
    """`(U, 3)` int64."""
    image_index: Tensor
    """`(B,)` int64: which unique picture a row shows, -1 for a text."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """This batch on a device; `dtype` is for the pixel values alone.

        What says which row goes where stays on the CPU, which alone reads it: from a GPU it would
        have to wait for it.
        """
        return replace(
            self,
            input_ids=to_device(self.input_ids, device),
            attention_mask=to_device(self.attention_mask, device),
            position_ids=to_device(self.position_ids, device),
            pixels=None if self.pixels is None else self.pixels.to(device, dtype),
        )


class Processor:
    """Items -> tensors for one checkpoint.

    `chat_template` is the checkpoint's own; `max_tokens` the most tokens the model reads;
    `decode_limit` the largest picture that is unpacked, in pixels.

    Raises:
        ConfigError: unknown `positions` or a limit below 1.
        CheckpointError: template and tokenizer do not make one placeholder per picture.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str,
        image: ImageBudget,
        positions: Positions = "sequential",
        image_token_id: int | None = None,
        max_tokens: int = 32_768,
        *,
        decode_limit: int = DECODE_LIMIT,
    ) -> None:
        if positions not in get_args(Positions):
            raise ConfigError(f"positions is {positions!r}; use 'sequential' or 'mrope'")
        if positions == "mrope" and not image.has_rows:
            raise ConfigError("positions is 'mrope', but this model counts in one line; leave it")
        if max_tokens < 1 or decode_limit < 1:
            raise ConfigError("max_tokens and decode_limit must be at least 1")
        self.chat = Chat(tokenizer, chat_template, image_token_id)
        self.image = image
        self.positions: Positions = positions
        self.max_tokens = max_tokens
        self.decode_limit = decode_limit
        self.truncate: Truncate = "error"
        """What words do that are too long: "error" refuses the item, "end" cuts them there."""
        self.truncated = 0
        """Items whose words were cut so far."""

    @property
    def image_token_id(self) -> int:
        """The id that stands for one visual token."""
        return self.chat.image_token_id

    @property
    def prompt_hash(self) -> str:
        """A short hash of the three kinds of prompt as they are rendered."""
        return self.chat.prompt_hash

    # -- one item --------------------------------------------------------------------------------

    def features(
        self,
        item: Item,
        *,
        max_pixels: int | None = None,
        pixels: Pixels | None = None,
        truncate: Truncate | None = None,
    ) -> Features:
        """One item -> tensors.

        `max_pixels` is the resolution dial (see `ImageBudget.limited`). `pixels` saves opening
        the picture again: what `pixels` returned for it, at the same `max_pixels`. `truncate` is
        that of this item; None: as `self.truncate` says.

        Raises:
            ImageError: the picture cannot be used.
            TextTooLongError: more tokens than `max_tokens`.
            TextError: the text holds the placeholder of a picture.
        """
        truncate = truncate or self.truncate
        ids = self.chat.encode(item)
        is_text = item.image is None
        if ids.count(self.image_token_id) != (0 if is_text else 1):
            raise TextError(
                f"the words hold {self.chat.image_token}, which stands for a picture; take it out"
            )
        if truncate == "error":
            self._check_length(len(ids), 0)  # before a picture is opened for nothing
        if item.image is None:
            if len(ids) > self.max_tokens:
                return self.features(self._cut(item, len(ids)), truncate=truncate)
            return Features(item.kind, torch.tensor(ids), None, None, None)
        if pixels is None:
            pixels = self.pixels(item.image, max_pixels=max_pixels)
        visual = self.visual_tokens(pixels)
        if truncate == "end" and len(ids) - 1 + visual > self.max_tokens and item.instruction:
            cut = self._cut(item, len(ids) - 1 + visual)
            return self.features(cut, max_pixels=max_pixels, pixels=pixels, truncate=truncate)
        self._check_length(len(ids) - 1 + visual, visual)
        at = ids.index(self.image_token_id)
        ids = ids[:at] + [self.image_token_id] * visual + ids[at + 1 :]
        return Features(
            kind=item.kind,
            input_ids=torch.tensor(ids),
            pixels=torch.from_numpy(pixels.values),
            grid_thw=pixels.grid_thw,
            image_key=pixels.key,
        )

    def visual_tokens(self, pixels: Pixels) -> int:
        """`V` of one picture."""
        return math.prod(pixels.grid_thw) // self.image.merge_size**2

    def pixels(self, image: ImageInput, *, max_pixels: int | None = None) -> Pixels:
        """Open and resize one picture.

        Raises:
            ImageError: the picture cannot be used.
        """
        budget = self.image.limited(max_pixels)
        with hold_memory():
            picture = open_image(image, decode_limit=self.decode_limit)
            try:
                return to_pixels(picture, budget)
            except AspectError as error:
                problem = AspectError(f"{describe_image(image)}: {error}")
        del picture  # which the frame of the error would hold
        raise problem

    def _cut(self, item: Item, tokens: int) -> Item:
        """The item with as many of its words as fit, where it has so many tokens.

        Raises:
            TextTooLongError: there is no room for a word.
        """
        words = item.text or item.instruction or ""
        kept = self.chat.first_words(words, tokens - self.max_tokens)
        if not kept.strip():
            self._check_length(tokens, 0)
        self.truncated += 1
        if str(self.truncated).strip("0") == "1":  # 1, 10, 100, ...
            logger.warning(
                "%d items so far cut to the %d tokens that the model reads (this one has %d)",
                self.truncated,
                self.max_tokens,
                tokens,
            )
        return replace(item, **{"text" if item.image is None else "instruction": kept})

    def _check_length(self, tokens: int, visual: int) -> None:
        if tokens <= self.max_tokens:
            return
        of_which = f" ({visual:,} of them for the picture)" if visual else ""
        mend = "shorten it" if not visual else "shorten the words or lower max_pixels"
        raise TextTooLongError(
            f"the item has {tokens:,} tokens{of_which} and the model reads at most "
            f"{self.max_tokens:,}; {mend}"
        )

    # -- a batch ---------------------------------------------------------------------------------

    def collate(self, features: Sequence[Features], *, pixels: bool = True) -> Batch:
        """`B` items -> one batch, padded on the right; each unique picture is in it once.

        Unique pictures keep the order in which `features` first shows them. With `pixels` False
        they are left out, for a caller that has the visual tokens already.
        """
        size = (len(features), max((f.tokens for f in features), default=0))
        input_ids = torch.zeros(size, dtype=torch.int64)
        mask = torch.zeros(size, dtype=torch.bool)
        positions = torch.zeros((3, *size), dtype=torch.int64)
        unique: dict[str, Features] = {}  # by key, in order
        place: dict[str, int] = {}
        index: list[int] = []
        for row, item in enumerate(features):
            input_ids[row, : item.tokens] = item.input_ids
            mask[row, : item.tokens] = True
            positions[:, row, : item.tokens] = self.position_ids(item.input_ids, item.grid_thw)
            if item.image_key is None:
                index.append(-1)
                continue
            unique.setdefault(item.image_key, item)
            index.append(place.setdefault(item.image_key, len(place)))
        shown = list(unique.values())
        return Batch(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            instructed=torch.tensor([f.kind is Kind.INSTRUCTED for f in features]),
            pixels=self.collate_images(shown) if shown and pixels else None,
            image_grid_thw=torch.tensor([f.grid_thw for f in shown]) if shown else None,
            image_index=torch.tensor(index, dtype=torch.int64),
        )

    def collate_images(self, features: Sequence[Features]) -> PixelBatch:
        """Items with different pictures -> the pixels of all."""
        flat = [f.pixels.flatten() for f in features if f.pixels is not None]
        grids = tuple(f.grid_thw for f in features if f.grid_thw is not None)
        return PixelBatch(torch.cat(flat) if len(flat) > 1 else flat[0], grids, self.image)

    def position_ids(self, input_ids: Tensor, grid_thw: tuple[int, int, int] | None) -> Tensor:
        """`(T,)` ids -> `(3, T)` positions: frame, row and column of each token."""
        tokens = input_ids.shape[0]
        plain = torch.arange(tokens).expand(3, tokens)
        if self.positions == "sequential" or grid_thw is None:
            return plain
        # M-RoPE: a picture spans its rows and columns, and the words after it go on from the
        # larger of the two, as if the picture were that many tokens long.
        start = int((input_ids == self.image_token_id).nonzero()[0])
        rows, columns = (n // self.image.merge_size for n in grid_thw[1:])
        visual = rows * columns
        inside = torch.stack(
            (
                torch.zeros(visual, dtype=torch.int64),
                torch.arange(rows).repeat_interleave(columns),
                torch.arange(columns).repeat(rows),
            )
        )
        after = torch.arange(tokens - start - visual).expand(3, -1) + max(rows, columns)
        return torch.cat((plain[:, :start], inside + start, after + start), dim=1)

    # -- on disk ---------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Everything but tokenizer and template, as JSON values; `from_folder` reads it back."""
        return {
            "positions": self.positions,
            **self.image.settings(),
            "max_tokens": self.max_tokens,
            "image_token_id": self.image_token_id,
        }

    def save(self, folder: str | Path) -> None:
        """Write tokenizer, chat template and settings into a folder (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.chat.save(folder)
        (folder / _SETTINGS_FILE).write_text(
            json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8"
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        positions: Positions | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        decode_limit: int = DECODE_LIMIT,
    ) -> Self:
        """Read a folder of ours or of a published model of a known family; nothing is fetched.

        What is not given is taken from the folder's files; positions that they do not name are
        sequential.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        settings = read_json(folder / _SETTINGS_FILE)
        config = read_json(folder / "config.json")
        family = family_of(str(config.get("model_type")))
        text = config.get("text_config") or config
        try:
            image = family.read_budget(settings, config)
            low, high = min_pixels or image.min_pixels, max_pixels or image.max_pixels
            if (low, high) != (image.min_pixels, image.max_pixels):
                image = replace(image, min_pixels=low, max_pixels=high)
            max_tokens = int(settings.get("max_tokens") or text["max_position_embeddings"])
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(
                f"the settings in {folder} are incomplete or damaged ({error!r}); "
                "get the model's files again"
            ) from None
        except ConfigError as error:
            raise CheckpointError(f"{folder / _SETTINGS_FILE}: {error}") from None
        if image.max_visual_tokens > _MOST_VISUAL_TOKENS:
            raise CheckpointError(
                f"{folder / _SETTINGS_FILE}: max_pixels is {image.max_pixels}, which no model reads"
            )
        if image.min_pixels > image.tokens_to_pixels(max_tokens):
            raise CheckpointError(
                f"{folder / _SETTINGS_FILE}: min_pixels is {image.min_pixels}, more than the "
                f"{max_tokens} tokens that the model reads; get the model's files again"
            )
        chat = read_tokenizer(folder), family.chat_template(read_chat_template(folder))
        image_token_id = settings.get("image_token_id", config.get("image_token_id"))
        count = positions or settings.get("positions", "sequential")
        try:
            return cls(*chat, image, count, image_token_id, max_tokens, decode_limit=decode_limit)
        except ConfigError as error:
            raise CheckpointError(f"{folder / _SETTINGS_FILE}: {error}") from None

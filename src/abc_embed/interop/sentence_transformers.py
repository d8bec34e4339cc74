"""Our model as the one module of a `SentenceTransformer`, for inference and for its trainer.

What that library takes is turned into items and embedded with `Embedder`, so that vectors are the
same and a batch may mix all kinds. In training, with gradients on, the same items go through the
model without the engine, so that gradients come back.

What a `SentenceTransformer` hands over, and what becomes of it:

    "a dog"                              a text
    "photo.jpg", if there is such a file, a picture, an array, a tensor    an image
    {"text": "photo.jpg"}                a text in any case
    {"image": picture, "text": words}    an image with an instruction
    prompt="..." of the call             goes in front of the words; alone with an image it is them
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abc_embed import checkpoint, runtime
from abc_embed.card import model_card
from abc_embed.embedder import Embedder
from abc_embed.errors import InputError, MissingExtraError, UsageError
from abc_embed.inputs import ImageInput, Item

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modality import infer_modality, is_message_dict
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.util import load_dir_path
except ImportError:
    raise MissingExtraError.of("bench", "sentence-transformers 6.2 or newer") from None


class AbcModule(InputModule):
    """The whole model; what `modules.json` of an exported folder names."""

    forward_kwargs = {"max_pixels"}  # noqa: RUF012  (declared so by the library)
    """`encode(..., max_pixels=...)`: the largest area at which a picture is seen."""
    save_in_root = True  # so that `Embedder.from_pretrained` and the card know the folder too

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedder = embedder
        self.model = embedder.model  # registers the weights, so that `.to(device)` moves them
        self.tokenizer = embedder.processor.chat.tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        """For the library's worker processes."""
        return AbcModule, (self.embedder,)

    @property
    def modalities(self) -> list[Any]:
        """The kinds of input; "message" lets the library mix them in one batch."""
        return ["text", "image", ("image", "text"), "message"]

    def get_embedding_dimension(self) -> int:
        return self.embedder.dim

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs as the library takes them -> `{"items": [Item, ...], "input_ids": (B, 1)}`.

        The trainer finds an input by the name `input_ids`, and its cached losses cut tensors into
        parts and leave lists whole: so these are the numbers of the items.

        Raises:
            InputError: one is nothing that can be embedded.
        """
        items = [to_item(value, prompt or "") for value in inputs]
        return {"items": items, "input_ids": torch.arange(len(items))[:, None]}

    def forward(
        self, features: dict[str, Any], max_pixels: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Adds `sentence_embedding`, `(B, D)`, on the model's device."""
        items: list[Item] = [features["items"][n] for n in features["input_ids"][:, 0].tolist()]
        if self.training and torch.is_grad_enabled():
            processor = self.embedder.processor
            found = [processor.features(item, max_pixels=max_pixels) for item in items]
            vectors = self.model(processor.collate(found).to(self.model.device))
            return {**features, "sentence_embedding": vectors}
        vectors = self.embedder.embed(items, max_pixels=max_pixels, batch_size=max(1, len(items)))
        on_device = torch.from_numpy(vectors).to(self.model.device)
        return {**features, "sentence_embedding": on_device}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the model's own files among those of the library."""
        checkpoint.write_files(self.embedder.model, self.embedder.processor, Path(output_path))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "AbcModule":
        """Load from a folder, or from what the hub keeps of one.

        In float32 unless `model_kwargs={"dtype": ...}` says otherwise; the library then moves it
        to its device.
        """
        if kwargs.get("backend", "torch") != "torch":
            raise UsageError(
                f"backend is {kwargs['backend']!r}, and this model runs on torch alone; leave "
                "backend out"
            )
        options = kwargs.get("model_kwargs") or {}
        dtype = options.get("dtype") or options.get("torch_dtype") or "float32"
        folder = load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        loaded = checkpoint.load_folder(
            Path(folder or model_name_or_path),
            dtype=runtime.resolve_dtype(dtype, "cpu"),
            attn=options.get("attn_implementation") or "sdpa",
        )
        return cls(Embedder(*loaded))


def as_sentence_transformer(embedder: Embedder) -> SentenceTransformer:
    """A loaded model as a `SentenceTransformer`, without a folder; the weights are shared."""
    model = SentenceTransformer(modules=[AbcModule(embedder)], device=str(embedder.model.device))
    card = model_card(embedder.config)
    model._model_card_text = card  # type: ignore[assignment]  # a saved folder's README
    return model


def to_item(value: Any, prompt: str = "") -> Item:
    """One input of the library -> our item; see the table above.

    Raises:
        InputError: it is nothing that can be embedded.
    """
    if is_message_dict(value) or (isinstance(value, list) and value):
        parts = _from_message(value)
    elif isinstance(value, Mapping):
        parts = dict(value)
    else:
        parts = {_kind(value): value}
    words, image = parts.pop("text", None), parts.pop("image", None)
    if parts or (words is not None and not isinstance(words, str)):
        raise InputError("an input has more than one image and one text; give one of each at most")
    if image is None:
        return Item(text=None if words is None else prompt + words)
    return Item(image=_picture(image), instruction=(prompt + (words or "")) or None)


def _kind(value: Any) -> str:
    """Whether a bare value is a text or an image, as the library sees it."""
    try:
        kind = infer_modality(value, supported_modalities=["text", "image"])
    except ValueError:
        kind = "message"
    if kind not in ("text", "image") or isinstance(value, tuple):
        raise InputError(
            f"cannot embed a value of type {type(value).__name__}; give a text, a picture, or a "
            "dict of 'image' and 'text'"
        )
    return str(kind)


def _from_message(value: Any) -> dict[str, Any]:
    """A chat of one user turn -> its image and its text."""
    turns = value if isinstance(value, list) else [value]
    if len(turns) != 1 or not is_message_dict(turns[0]) or turns[0]["role"] != "user":
        raise InputError("a chat must be one message of the role 'user'; give its parts as a dict")
    content: Any = turns[0]["content"]
    if isinstance(content, str):
        return {"text": content}
    parts: dict[str, Any] = {}
    for part in content:
        kind = part.get("type")
        if kind not in ("image", "text") or kind in parts:
            raise InputError("a message may hold one image and one text, and this one holds more")
        parts[kind] = part.get(kind)
    if parts.get("text") == "" and "image" in parts:
        del parts["text"]
    return parts


def _picture(image: Any) -> ImageInput:
    """A tensor as an array, colours last; all else is left to `inputs.open_image`."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray) and image.ndim == 3:
        colours_first = image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4)
        return np.moveaxis(image, 0, 2) if colours_first else image
    return image  # type: ignore[no-any-return]

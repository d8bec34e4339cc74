"""A model of open_clip as a benchmark sees it: texts and images, each alone.

An image with an instruction is not taken, since such a model has one encoder for each; measure it
as `late:open_clip:...`. The library needs torchvision, so it is an extra of its own: `open-clip`.
"""

import importlib
from typing import Any

import numpy as np
import torch
from PIL import Image

from abc_embed import runtime
from abc_embed.bench.encoders.base import Vectors, strip_path
from abc_embed.bench.encoders.foreign import ForeignEncoder
from abc_embed.errors import CheckpointError, MissingExtraError, UsageError
from abc_embed.inputs import Kind

_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class OpenClipEncoder(ForeignEncoder):
    """A model of open_clip with its own preparation of pictures and its own tokenizer.

    The model sees every picture at its one size, cut or stretched as it was trained.
    """

    library = "open_clip"

    def __init__(
        self,
        model: Any,
        prepare: Any,
        tokenize: Any,
        name: str,
        *,
        batch_size: int | None = None,
    ) -> None:
        self._prepare = prepare
        self._tokenize = tokenize
        self._parameter = next(model.parameters())
        kinds = frozenset({Kind.TEXT, Kind.IMAGE})
        super().__init__(model.eval(), f"open_clip:{name}", kinds, dim=None, batch_size=batch_size)

    @torch.no_grad()
    def _embed_kind(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        device, dtype = self._parameter.device, self._parameter.dtype
        if kind is Kind.TEXT:
            vectors = self.model.encode_text(self._tokenize(words).to(device))
        else:
            pixels = torch.stack([self._prepare(picture) for picture in pictures])
            vectors = self.model.encode_image(pixels.to(device, dtype))
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def _config(self) -> dict[str, Any]:
        return {"preparation": str(self._prepare), "name": self.name}

    def _place(self) -> tuple[str, str]:
        parameter = self._parameter
        return str(parameter.dtype).removeprefix("torch."), parameter.device.type


def load_open_clip(
    name: str, *, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> OpenClipEncoder:
    """`MODEL/PRETRAINED` by the names of open_clip, where PRETRAINED may be a file.

    Names that the library knows are fetched by it. `dtype="auto"` is float32 on a CPU, bfloat16
    elsewhere.

    Raises:
        AbcError: as `load_encoder`.
    """
    try:
        open_clip = importlib.import_module("open_clip")
    except ImportError:
        raise MissingExtraError.of("open-clip", "a model of open_clip") from None
    model_name, slash, pretrained = name.partition("/")
    if not (model_name and slash and pretrained):
        raise UsageError(
            f"{name!r} is no name of an open_clip model; write open_clip:MODEL/PRETRAINED,"
            " as in open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    where = runtime.resolve_device(device)
    precision = _PRECISION[str(runtime.resolve_dtype(dtype, where)).removeprefix("torch.")]
    try:
        model, _, prepare = open_clip.create_model_and_transforms(
            model_name, pretrained=pretrained, device=str(where), precision=precision
        )
        tokenize = open_clip.get_tokenizer(model_name)
    except (OSError, ValueError, RuntimeError) as problem:
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise CheckpointError(f"open_clip cannot load {name!r}: {why}; check the name") from problem
    shown = f"{model_name}/{strip_path(pretrained)}"
    return OpenClipEncoder(model, prepare, tokenize, shown, batch_size=batch_size)

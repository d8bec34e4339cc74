"""Any model behind one small face: what benchmarks measure, chosen by name.

bundled, a folder, owner/name    a model of ours
st:NAME                          a model of sentence-transformers: a folder, or owner/name
open_clip:MODEL/PRETRAINED       a model of open_clip
late:NAME                        image vector + text vector of any of these
random, random:DIM               chance
"""

from typing import Any

from abc_embed.bench.encoders.base import Encoder, Vectors, strip_path
from abc_embed.bench.encoders.wrapped import RANDOM_DIM, CachedEncoder, LateFusion, RandomEncoder
from abc_embed.embedder import Embedder
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind
from abc_embed.processor import Truncate

__all__ = ["CachedEncoder", "Encoder", "NativeEncoder", "load_encoder"]


class NativeEncoder(Encoder):
    """An `Embedder`; takes every kind. Pictures of one call are encoded once each."""

    library = "abc-embed"
    supported_kinds = frozenset(Kind)

    def __init__(self, embedder: Embedder, name: str, *, batch_size: int | None = None) -> None:
        self.embedder = embedder
        self.name, self.dim = strip_path(name), embedder.dim
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        return self.embedder.fingerprint

    def _embed(self, items: list[Item]) -> Vectors:
        return self.embedder.embed(
            items, max_pixels=self.max_pixels, batch_size=self.batch_size, progress=self.progress
        )

    def _details(self) -> dict[str, Any]:
        """Sources that are paths are cut to their last part."""
        config = self.embedder.config
        config["source"] = {key: strip_path(str(v)) for key, v in config.get("source", {}).items()}
        return {
            "dtype": str(self.embedder.model.dtype).removeprefix("torch."),
            "device": self.embedder.model.device.type,
            "prompt_hash": config["prompt_hash"],
            "config": config,
        }


def load_encoder(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    truncate: Truncate = "error",
    progress: bool = False,
) -> Encoder:
    """The encoder of a name; see the head of this file for the names.

    `device` and `dtype` are as in `Embedder.from_pretrained`; with `dtype="auto"`
    models of other libraries keep the number format of their files. `truncate` is what too long
    words do in models of ours: "error", or "end", which cuts them; other libraries cut. With
    `progress` a bar is drawn while it embeds.

    Raises:
        UsageError: the name is not complete.
        UnknownModelError, OfflineError, CheckpointError: the model cannot be had.
        DeviceError: this machine has no such device or number format.
        MissingExtraError: the library of the model is not installed.
    """
    kind, colon, rest = name.partition(":")
    if kind == "random":
        if colon and not rest.isdecimal():
            raise UsageError(f"{name!r} has no width; write random or random:{RANDOM_DIM}")
        return RandomEncoder(int(rest)) if colon else RandomEncoder()
    if not colon or kind not in ("late", "st", "open_clip"):
        embedder = Embedder.from_pretrained(name, device=device, dtype=dtype)
        embedder.processor.truncate = truncate
        native = NativeEncoder(embedder, name, batch_size=batch_size)
        native.progress = progress
        return native
    if not rest:
        raise UsageError(f"{name!r} names no model; write it behind the colon")
    options: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size}
    if kind == "late":
        options |= {"truncate": truncate, "progress": progress}
        return LateFusion(load_encoder(rest, **options))
    from abc_embed.bench.encoders import foreign

    load = foreign.load_sentence_transformer if kind == "st" else foreign.load_open_clip
    encoder = load(rest, **options)
    encoder.progress = progress
    return encoder

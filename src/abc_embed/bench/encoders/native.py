"""An `Embedder` as a benchmark sees it."""

from typing import Any

from abc_embed.bench.encoders.base import Encoder, Vectors, strip_path
from abc_embed.embedder import Embedder
from abc_embed.inputs import Item, Kind


class NativeEncoder(Encoder):
    """A model of ours; takes every kind. Pictures of one call are encoded once each."""

    library = "abc-embed"
    supported_kinds = frozenset(Kind)

    def __init__(self, embedder: Embedder, name: str, *, batch_size: int = 32) -> None:
        self.embedder = embedder
        self.name, self.dim = strip_path(name), embedder.dim
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """`Embedder.fingerprint`."""
        return self.embedder.fingerprint

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        return self.embedder.embed(
            items, max_pixels=max_pixels, batch_size=self.batch_size, progress=progress
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

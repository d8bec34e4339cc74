"""An `Embedder` as a benchmark sees it."""

from collections.abc import Sequence
from typing import Any

from abc_embed.bench.encoders.base import Vectors, checked, no_path, takes_in_words
from abc_embed.embedder import Embedder
from abc_embed.inputs import Item, Kind


class NativeEncoder:
    """A model of ours; takes every kind. Pictures of one call are encoded once each."""

    takes = frozenset(Kind)

    def __init__(self, embedder: Embedder, name: str, *, batch_size: int = 32) -> None:
        self.embedder = embedder
        self.name = no_path(name)
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """`Embedder.fingerprint`."""
        return self.embedder.fingerprint

    @property
    def dim(self) -> int:
        """`Embedder.dim`."""
        return self.embedder.dim

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """As `Encoder.embed`."""
        return self.embedder.embed(
            checked(items, self.takes, self.name),
            max_pixels=max_pixels,
            batch_size=self.batch_size,
            progress=progress,
        )

    def describe(self) -> dict[str, Any]:
        """As `Encoder.describe`; sources that are paths are cut to their last part."""
        config = self.embedder.config
        config["source"] = {key: no_path(str(v)) for key, v in config.get("source", {}).items()}
        return {
            "kind": "abc-embed",
            "takes": takes_in_words(self.takes),
            "dtype": str(self.embedder.model.dtype).removeprefix("torch."),
            "device": self.embedder.model.device.type,
            "prompt_hash": config["prompt_hash"],
            "config": config,
        }

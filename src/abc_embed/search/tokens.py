"""Visual tokens of images that were looked at, kept on disk for the next instruction.

They depend on no instruction, and the vision encoder that makes them is the larger part of a pass.

Shapes: `V` visual tokens of an image, `W` their width.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abc_embed.pipeline import EmbeddingPipeline
from abc_embed.processor import Features
from abc_embed.search.settings import TOKEN_LIMIT_BYTES, TOKENS
from abc_embed.storage.sqlite import SqliteStore


class TokenStore(SqliteStore):
    """Visual tokens by the model and by the pixels that it sees, so by content and resolution."""

    TABLES = (
        "CREATE TABLE IF NOT EXISTS tokens (key TEXT PRIMARY KEY, length INTEGER, bytes INTEGER,"
        " used_ns INTEGER, data BLOB)",
        "CREATE INDEX IF NOT EXISTS by_use ON tokens (used_ns, bytes)",
    )
    ERROR = "the kept tokens {path} cannot be used ({error}); delete the file"

    def __init__(self, folder: Path, limit_bytes: int = TOKEN_LIMIT_BYTES) -> None:
        """Opens those of an index, made if absent.

        Raises:
            OutputError: the file cannot be made or opened.
        """
        super().__init__(folder / TOKENS)
        self._limit = limit_bytes
        self._bytes = self.size()[1]

    def size(self) -> tuple[int, int]:
        """How many images have theirs, and their bytes."""
        ((count, total),) = self.query("SELECT count(*), total(bytes) FROM tokens")
        return int(count), int(total)

    def get(self, key: str, dtype: torch.dtype) -> Tensor | None:
        """`(V, W)` in the number format of the model that they were kept from."""
        rows = self.query("SELECT length, data FROM tokens WHERE key = ?", (key,))
        if not rows:
            return None
        self.execute("UPDATE tokens SET used_ns = ? WHERE key = ?", [(time.time_ns(), key)])
        length, data = rows[0]
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(length, -1)

    def put(self, tokens: dict[str, Tensor]) -> None:
        """Keep more; beyond the limit the ones unused longest are let go."""
        rows: list[tuple[Any, ...]] = []
        for key, values in tokens.items():
            data = values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            rows.append((key, len(values), len(data), time.time_ns(), data))
        self.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", rows)
        self._bytes += sum(row[2] for row in rows)
        if self._bytes > self._limit:
            self._let_go()

    def _let_go(self) -> None:
        self._bytes = self.size()[1]  # other processes may have been here
        old: list[tuple[str]] = []
        for key, size in self.query("SELECT key, bytes FROM tokens ORDER BY used_ns"):
            if self._bytes <= self._limit:
                break
            old.append((key,))
            self._bytes -= size
        self.execute("DELETE FROM tokens WHERE key = ?", old)


class KeptTokens(EmbeddingPipeline):
    """The engine with a store of visual tokens, which is asked before the vision encoder is.

    `model_key` is the `Embedder.fingerprint` of the model.
    """

    def __init__(self, *parts: Any, store: TokenStore, model_key: str, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._store, self._model_key = store, model_key

    def encode_pictures(self, pictures: dict[str, Features]) -> Iterator[tuple[str, Tensor]]:
        """As the base, for the pictures that are not in the store; these are kept there."""
        missing = dict(pictures)
        for key in pictures:
            known = self._store.get(f"{self._model_key} {key}", self._model.dtype)
            if known is not None:
                del missing[key]
                yield key, known.to(self._model.device)
        new: dict[str, Tensor] = {}
        for key, tokens in super().encode_pictures(missing):
            new[f"{self._model_key} {key}"] = tokens
            yield key, tokens
        if new:
            self._store.put(new)

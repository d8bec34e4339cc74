"""What tests of the VLM client share: pictures, clocks, the client for a server of the tests."""

import io
import json
import time
from typing import Any

import pytest
from PIL import Image
from vlm_server import KEY, VlmServer

from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.limits import Clock, Limits
from abc_embed.vlm.rejects import Rejects


def picture(colour: str = "red", form: str = "PNG") -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(packed, format=form)
    return packed.getvalue()


class Waits(Clock):
    """Time that jumps instead of passing."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._ahead = 0.0

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._ahead += seconds


class Frozen(Waits):
    """Time that stands still, but for the waits."""

    def now(self) -> float:
        return sum(self.waits)


class RejectList(Rejects):
    """The rows that would be written, to look at."""

    @property
    def rows(self) -> list[dict[str, str]]:
        assert isinstance(self.file, io.BytesIO)
        return [json.loads(line) for line in self.file.getvalue().splitlines()]

    def __init__(self) -> None:
        super().__init__(io.BytesIO())


def client(server: VlmServer, **options: Any) -> VlmClient:
    options.setdefault("limits", Limits(timeout_s=5))
    options.setdefault("clock", Waits())
    return VlmClient(server.url, "small-vlm", **options)


def set_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is there, and nothing of the user's points anywhere else."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

"""A server on loopback in a thread, and pictures to send it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import golden_parts
import numpy as np
import uvicorn
from PIL import Image

from abc_embed import Embedder
from abc_embed.serve.app import Server
from abc_embed.serve.settings import ServerSettings


def png(shade: int = 0, size: tuple[int, int] = (56, 56)) -> bytes:
    """A small picture as a PNG file."""
    pixels = np.asarray(golden_parts.small(shade=shade, size=size).image)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@contextmanager
def running(
    embedder: Embedder, *, protocol: Any = "auto", **settings: Any
) -> Iterator[tuple[str, Server]]:
    """The server in a thread, on a free port."""
    server = Server(embedder, "golden", ServerSettings(port=0, **settings))
    config = uvicorn.Config(
        server.app, port=0, http=protocol, log_level="error", timeout_graceful_shutdown=10
    )
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run)
    thread.start()
    while not process.started:
        time.sleep(0.01)
    port = process.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        process.should_exit = True
        thread.join()

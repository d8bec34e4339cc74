"""One request to an OpenAI-compatible endpoint: what goes out, what comes back, what went wrong.

Does: make an image sendable, read a reply in pieces under a deadline, and sort faults by what can
be done about them. Does not: try again, wait, or count money; `vlm.VlmClient` does.
"""

import base64
import email.utils
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from abc_embed.inputs import open_image

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

LARGEST_REPLY = 4_000_000
"""Bytes; a reply that is longer is no reply to a question of ours."""
_SENDABLE = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF": "WEBP"}
_PASSING = frozenset({408, 409, 425, 429})
_HOPELESS = frozenset({401, 402, 403, 404})


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said. `refusal` is set where the endpoint itself says that it refused.

    `model` is the name that the endpoint gave; `cut_off` means that the reply reached its longest
    length; `cached` that nobody was asked this time.
    """

    text: str
    model: str
    refusal: str | None = None
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = False

    def json(self) -> object:
        """The text as JSON, taken out of a Markdown fence if it is in one; None if it is none."""
        text = self.text.strip()
        if text.startswith("```"):
            text = text.partition("\n")[2].rpartition("```")[0]
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer.

    `kind` sorts faults in reports and `said` tells it; `passes`: trying again may help; `hopeless`:
    no other request will do better; `wait_s` is what the endpoint asks for; `may_cost`: it may have
    been answered and paid for, and the answer was lost on the way.
    """

    kind: str
    said: str = ""
    passes: bool = False
    hopeless: bool = False
    wait_s: float | None = None
    may_cost: bool = False


def as_sendable(image: bytes) -> tuple[tuple[str, bytes], tuple[int, int]]:
    """((media type, bytes), (width, height)): as it is where endpoints know the format, else PNG.

    Raises:
        ImageError: it cannot be opened.
    """
    picture = open_image(image)
    kind = next((name for magic, name in _MAGIC.items() if image.startswith(magic)), None)
    if kind is not None:
        return (_SENDABLE[kind], image), picture.size
    packed = io.BytesIO()
    picture.save(packed, format="PNG")
    return ("image/png", packed.getvalue()), picture.size


def estimate_tokens(prompt: str, size: tuple[int, int] | None, image_tokens: int | None) -> int:
    """Tokens of a prompt with its image, rather too many than too few.

    A token has three or more bytes of common text. An image has one for 28 × 28 pixels
    (Qwen), or 170 for each 512 × 512 begun and 85 on top (OpenAI), whichever is more.
    """
    words = math.ceil(len(prompt.encode()) / 3) + 16  # and what the chat template adds
    if size is None:
        return words
    if image_tokens is None:
        width, height = size
        tiles = math.ceil(width / 512) * math.ceil(height / 512)
        image_tokens = max(math.ceil(width / 28) * math.ceil(height / 28), 85 + 170 * tiles)
    return words + image_tokens


def request_body(
    model: str,
    prompt: str,
    image: tuple[str, bytes] | None,
    schema: Mapping[str, Any] | None,
    json_mode: str,
    token_field: str,
    max_tokens: int,
) -> dict[str, Any]:
    """A request at temperature 0: the image, if any, as (media type, bytes), then the prompt."""
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    if image is not None:
        url = f"data:{image[0]};base64,{base64.b64encode(image[1]).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        token_field: max_tokens,
    }
    if schema is not None and json_mode == "schema":
        named = {"name": "reply", "strict": True, "schema": dict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif schema is not None and json_mode == "object":
        body["response_format"] = {"type": "json_object"}
    return body


def receive(
    client: "OpenAI", body: Mapping[str, Any], timeout_s: float, now: Callable[[], float]
) -> Reply | Failure:
    """Send one request and read its reply, whole within `timeout_s`, or say what went wrong.

    The wait for one piece of a reply is bounded too, so that all of it ends within twice that time.
    """
    import openai

    ends = now() + timeout_s
    broken: tuple[type[Exception], ...] = (openai.APIConnectionError, *_transport_errors())
    create: Any = client.chat.completions.with_streaming_response.create
    try:
        with create(**body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LARGEST_REPLY:
                    return Failure("endless reply", "the reply does not end", may_cost=True)
                if now() > ends:
                    said = f"no whole reply within {timeout_s:g} s"
                    return Failure("timeout", said, passes=True, may_cost=True)
    except openai.APIStatusError as error:
        return _status(error)
    except (openai.APITimeoutError, TimeoutError):
        said = f"no reply within {timeout_s:g} s"
        return Failure("timeout", said, passes=True, may_cost=True)
    except broken as error:
        if "Timeout" in type(error).__name__:
            said = f"no whole reply within {timeout_s:g} s"
            return Failure("timeout", said, passes=True, may_cost=True)
        cause = error.__cause__ or error
        said = f"the connection failed ({type(cause).__name__})"
        lost = "Connect" not in type(cause).__name__  # it was up before it broke
        return Failure("connection", said, passes=True, may_cost=lost)
    return _parse(bytes(content))


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the client's own transport raises while a reply is read; its package has two names."""
    loaded: list[ModuleType | None] = [sys.modules.get(name) for name in ("httpx2", "httpx")]
    errors: list[type[Exception]] = [module.HTTPError for module in loaded if module is not None]
    return tuple(errors)


def _status(error: "APIStatusError") -> Failure:
    """What an HTTP status other than 200 means for this request and for the others."""
    status = error.status_code
    said = f"HTTP {status}: {' '.join(str(error.message).split())[:300]}"
    kind = f"HTTP {status}"
    spent = error.code == "insufficient_quota"
    if status in _HOPELESS or spent:
        mend = "check the account" if spent else "check key, model and base URL"
        return Failure(kind, f"{said}; {mend}", hopeless=True)
    if status in _PASSING or status >= 500:
        return Failure(kind, said, passes=True, wait_s=_wanted_wait(error.response.headers))
    return Failure(kind, said)


def _wanted_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which holds seconds or a date; None without one."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        return wait if wait >= 0 and math.isfinite(wait) else None
    try:
        then = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())


def _parse(content: bytes) -> Reply | Failure:
    """A chat completion from its bytes; anything else is a fault that may pass."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return Failure("malformed reply", "the reply is not JSON", passes=True, may_cost=True)
    try:
        if reply.get("error"):  # some gateways say 200 and mean 500
            said = f"the reply is an error: {str(reply['error'])[:300]}"
            return Failure("error reply", said, passes=True)
        choice = reply["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        usage = reply.get("usage") or {}
        refusal = message.get("refusal")
        if finish == "content_filter":
            refusal = refusal or "held back by the endpoint's filter"
        return Reply(
            text=_text(message.get("content")),
            model=str(reply.get("model") or ""),
            refusal=None if refusal is None else str(refusal),
            cut_off=finish == "length",
            input_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (LookupError, AttributeError, TypeError, ValueError):
        said = "the reply has no choice with a message"
        return Failure("malformed reply", said, passes=True, may_cost=True)


def _text(content: object) -> str:
    """The text of a message: a string, or parts of which some are text."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    return "" if content is None else str(content)

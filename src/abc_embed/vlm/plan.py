"""What asking a VLM would come to, before anything is asked: requests, tokens, cost, time.

Does: count requests that somebody would make. Does not: send anything, or know what is asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError
from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.wire import estimate_tokens


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: its image file, with width and height, and its prompt."""

    image: Path
    size: tuple[int, int]
    prompt: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask: `known` requests are in the cache and cost nothing.

    Tokens, cost and minutes are for one try of each of the others; `most_requests` and `most_cost`
    are for the case that every try fails.
    """

    images: int
    requests: int
    known: int
    most_requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    most_cost: float | None
    minutes: float | None
    example: str


def estimate(
    client: VlmClient, requests: Iterable[Planned], tries: int, again_tokens: int
) -> Estimate:
    """Count the requests; another try of one has at most `again_tokens` more.

    Images are read only where replies may be known.
    """
    images: set[Path] = set()
    asked, known, tokens, example = 0, 0, 0, ""
    for request in requests:
        images.add(request.image)
        asked += 1
        example = example or request.prompt
        if client.cache.path is not None and _known(client, request):
            known += 1
        else:
            tokens += estimate_tokens(request.prompt, request.size, client.image_tokens)
    new = asked - known
    replies = new * client.max_tokens
    most = (tokens * tries + new * again_tokens * (tries - 1), replies * tries)
    limits = client.limits
    spans = [0.0]
    if limits.requests_per_minute is not None:
        spans.append(new / limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        spans.append((tokens + replies) / limits.tokens_per_minute)
    return Estimate(
        images=len(images),
        requests=asked,
        known=known,
        most_requests=new * tries,
        input_tokens=tokens,
        output_tokens=replies,
        cost=limits.cost(tokens, replies),
        most_cost=limits.cost(*most),
        minutes=max(spans) or None,
        example=example,
    )


def _known(client: VlmClient, request: Planned) -> bool:
    try:
        return client.known(request.image.read_bytes(), request.prompt, request.schema)
    except OSError as problem:
        raise DataError(f"{request.image} cannot be read: {problem.strerror}; mend that") from None

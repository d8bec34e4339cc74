"""What commands that ask a VLM take: the endpoint, how fast, and how much it may cost.

Does: declare the options, and make the client that they describe, and show what a dry
run found. Does not: ask.
"""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli.output import say, show, show_json, show_table
from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abc_embed.vlm.client import VlmClient
    from abc_embed.vlm.limits import PlannedRequest

Vlm = Annotated[
    str | None, typer.Option("--vlm", help="The model that writes, as the endpoint names it.")
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="Of the endpoint.", show_default="OPENAI_BASE_URL, or OpenAI"),
]
KeyVariable = Annotated[
    str, typer.Option("--key-variable", help="Environment variable that holds the key.")
]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, help="Requests under way at once.")
]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, help="Most requests a minute.")]
Tpm = Annotated[int | None, typer.Option("--tpm", min=1, help="Most tokens a minute.")]
PriceIn = Annotated[
    float | None, typer.Option("--price-in", min=0, help="Of a million tokens of prompt.")
]
PriceOut = Annotated[
    float | None, typer.Option("--price-out", min=0, help="Of a million tokens of reply.")
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Over all runs with the same --out.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Of one reply.")]
ImageTokens = Annotated[
    int | None,
    typer.Option("--image-tokens", min=1, help="Of one image.", show_default="by its size"),
]
TokenField = Annotated[
    str,
    typer.Option("--token-field", help="max_completion_tokens for endpoints that want that name."),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds for one reply.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="After faults that may pass.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be asked and what it costs; ask nothing.")
]
NAMES = (
    *("base_url", "key_variable", "concurrency", "rpm", "tpm", "price_in", "price_out", "max_cost"),
    *("max_tokens", "image_tokens", "token_field", "timeout", "retries", "dry_run"),
)
"""The options, as `vlm_client` takes them."""


def vlm_client(
    stack: ExitStack,
    vlm: str,
    replies: Path,
    *,
    base_url: str | None,
    key_variable: str,
    concurrency: int,
    rpm: int | None,
    tpm: int | None,
    price_in: float | None,
    price_out: float | None,
    max_cost: float | None,
    max_tokens: int,
    image_tokens: int | None,
    token_field: str,
    timeout: float,
    retries: int,
    dry_run: bool,
    json_mode: str = "schema",
) -> "VlmClient":
    """The client that the options describe, closed with `stack`; it keeps its replies in a file.

    A dry run makes no file, and needs neither a key nor the `openai` package.

    Raises:
        UsageError: an option that cannot be, or no key.
        MissingExtraError: `openai` is not installed.
    """
    from abc_embed.vlm.client import VlmClient
    from abc_embed.vlm.limits import Limits
    from abc_embed.vlm.reply_cache import ReplyCache

    if not vlm.strip():
        raise UsageError("--vlm is empty; give the model's name as the endpoint knows it")
    limits = Limits(
        concurrency=concurrency,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        price_in=price_in,
        price_out=price_out,
        max_cost=max_cost,
        retries=retries,
        timeout_s=timeout,
    )
    client = stack.enter_context(
        VlmClient(
            base_url,
            vlm,
            limits=limits,
            max_tokens=max_tokens,
            image_tokens=image_tokens,
            token_field=token_field,
            json_mode=json_mode,
            key_variable=key_variable,
        )
    )
    if not dry_run:
        client.connect()
    if replies.exists() or not dry_run:
        client.use_cache(stack.enter_context(ReplyCache(replies)))
    return client


def show_estimate(
    client: "VlmClient",
    requests: "Iterable[PlannedRequest]",
    tries: int,
    retry_tokens: int,
    as_json: bool,
) -> None:
    """What a dry run says: the result on stdout, the first prompt on stderr."""
    from abc_embed.vlm.limits import estimate

    found = estimate(client, requests, tries, retry_tokens)
    if as_json:
        show_json(dataclasses.asdict(found))
        return
    rows = [
        ("images", f"{found.images:,}"),
        ("requests", f"{found.requests:,}"),
        ("answered already", f"{found.known:,}"),
        ("requests, if every try fails", f"at most {found.most_requests:,}"),
        ("tokens of prompts", f"about {found.input_tokens:,}"),
        ("tokens of replies", f"at most {found.output_tokens:,}"),
    ]
    if found.cost is not None and found.most_cost is not None:
        rows.append(("cost", f"about {found.cost:,.2f}, at most {found.most_cost:,.2f}"))
    else:
        rows.append(("cost", "unknown; give --price-in and --price-out"))
    if found.minutes is not None:
        rows.append(("minutes, at the limits given", f"at least {found.minutes:,.1f}"))
    show_table(("dry run", ""), rows)
    if found.example:
        say(f"The first prompt:\n\n{found.example}")
    show("nothing was asked")

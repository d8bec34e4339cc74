"""Options of commands that ask a VLM: the endpoint, how fast, and how much it may cost."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli.output import Printer, print_message
from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abc_embed.vlm.client import VlmClient
    from abc_embed.vlm.limits import PlannedRequest

MaxTokens = Annotated[int, typer.Option(min=1, help="Of one reply.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VlmSettings:
    """A model behind an OpenAI-compatible endpoint; without `vlm` none is asked."""

    vlm: Annotated[
        str | None, typer.Option(help="The model that writes, as the endpoint names it.")
    ] = None
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint.", show_default="OPENAI_BASE_URL, or OpenAI")
    ] = None
    key_variable: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = (
        "OPENAI_API_KEY"
    )
    tries: Annotated[int, typer.Option(min=1, help="Of a reply that cannot be used.")] = 2
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 4
    rpm: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None
    tpm: Annotated[int | None, typer.Option(min=1, help="Most tokens a minute.")] = None
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Of a million tokens of prompt.")
    ] = None
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Of a million tokens of reply.")
    ] = None
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Over all runs with the same --out.")
    ] = None
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one image.", show_default="by its size")
    ] = None
    token_field: Annotated[
        str, typer.Option(help="max_completion_tokens for endpoints that want that name.")
    ] = "max_tokens"
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for one reply.")] = 120.0
    retries: Annotated[int, typer.Option(min=0, help="After faults that may pass.")] = 6
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be asked and what it costs; ask nothing.")
    ] = False

    def client(
        self, stack: ExitStack, replies: Path, *, max_tokens: int, json_mode: str = "schema"
    ) -> "VlmClient":
        """The client that the options describe, closed with `stack`.

        Replies are kept in the file `replies`. A dry run makes no file, and needs neither a key nor
        the `openai` package.

        Raises:
            UsageError: an option that cannot be, or no key.
            MissingExtraError: `openai` is not installed.
        """
        from abc_embed.vlm.client import VlmClient
        from abc_embed.vlm.limits import Limits, ReplyCache

        if self.vlm is None or not self.vlm.strip():
            raise UsageError("--vlm is empty; give the model's name as the endpoint knows it")
        limits = Limits(
            concurrency=self.concurrency,
            requests_per_minute=self.rpm,
            tokens_per_minute=self.tpm,
            price_in=self.price_in,
            price_out=self.price_out,
            max_cost=self.max_cost,
            retries=self.retries,
            timeout_s=self.timeout,
        )
        client = VlmClient(
            self.base_url,
            self.vlm,
            limits=limits,
            max_tokens=max_tokens,
            image_tokens=self.image_tokens,
            token_field=self.token_field,
            json_mode=json_mode,
            key_variable=self.key_variable,
        )
        stack.enter_context(client)
        if not self.dry_run:
            client.connect()
        if replies.exists() or not self.dry_run:
            client.use_cache(stack.enter_context(ReplyCache(replies)))
        return client

    def print_estimate(
        self,
        client: "VlmClient",
        requests: "Iterable[PlannedRequest]",
        retry_tokens: int,
        printer: Printer,
    ) -> None:
        """What a dry run says: the result on stdout, the first prompt on stderr."""
        plan = client.estimate(requests, self.tries, retry_tokens)
        printer.json(dataclasses.asdict(plan))
        rows = [
            ("images", f"{plan.images:,}"),
            ("requests", f"{plan.requests:,}"),
            ("answered already", f"{plan.known:,}"),
            ("requests, if every try fails", f"at most {plan.most_requests:,}"),
            ("tokens of prompts", f"about {plan.input_tokens:,}"),
            ("tokens of replies", f"at most {plan.output_tokens:,}"),
        ]
        if plan.cost is not None and plan.most_cost is not None:
            rows.append(("cost", f"about {plan.cost:,.2f}, at most {plan.most_cost:,.2f}"))
        else:
            rows.append(("cost", "unknown; give --price-in and --price-out"))
        if plan.minutes is not None:
            rows.append(("minutes, at the limits given", f"at least {plan.minutes:,.1f}"))
        printer.table(("dry run", ""), rows)
        if plan.example and not printer.as_json:
            print_message(f"The first prompt:\n\n{plan.example}")
        printer.line("nothing was asked")

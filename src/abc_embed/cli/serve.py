"""`abc-embed serve`: the model behind HTTP, on this machine alone unless told otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import epilog, print_message
from abc_embed.errors import MissingExtraError, OutputError
from abc_embed.runtime import in_own_thread
from abc_embed.search.settings import read_settings

EXAMPLES = epilog("""
  abc-embed serve
  abc-embed serve --model runs/mine --port 9000
  abc-embed serve --index photos.index
  abc-embed serve --host 0.0.0.0 --api-key-file keys.txt
""")


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What a server takes on."""

    index: Annotated[
        list[Path] | None,
        typer.Option(envvar="ABC_EMBED_INDEX", help="An index to search; may be repeated."),
    ] = None
    max_body: Annotated[str, typer.Option(envvar="ABC_EMBED_MAX_BODY", help="Largest request.")] = (
        "32 MB"
    )
    queue: Annotated[
        int, typer.Option(envvar="ABC_EMBED_QUEUE", help="Most items that wait or are computed.")
    ] = 1024
    token_budget: Annotated[
        int | None,
        typer.Option(
            envvar="ABC_EMBED_TOKEN_BUDGET",
            help="Most tokens of a batch, padding included.",
            show_default="what suits the device",
        ),
    ] = None
    cors: Annotated[
        list[str] | None,
        typer.Option(envvar="ABC_EMBED_CORS", help="Origin of a page elsewhere that may ask."),
    ] = None
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            envvar="ABC_EMBED_ALLOW_URLS",
            help="Host from which images may be fetched; may be repeated.",
        ),
    ] = None


def serve(
    *,
    host: Annotated[
        str, typer.Option(envvar="ABC_EMBED_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="ABC_EMBED_PORT", help="Port; 0 takes a free one.")
    ] = 8765,
    api_key_file: Annotated[
        Path | None, typer.Option(envvar="ABC_EMBED_API_KEY_FILE", help="Keys, one a line.")
    ] = None,
    no_key: Annotated[
        bool, typer.Option(envvar="ABC_EMBED_NO_KEY", help="Let other machines in without a key.")
    ] = False,
    model: options.IndexModel = "",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load: LoadSettings,
) -> None:
    """Serve embeddings over HTTP, and a page to try them on.

    OpenAI's, Cohere's, Voyage's, Jina's and vLLM's clients can ask as they do. Ctrl-C or SIGTERM
    finishes what runs and takes nothing new.
    """
    from abc_embed.serve.settings import ServerSettings, read_keys

    chosen = ServerSettings(
        host=host,
        port=port,
        keys=() if api_key_file is None else read_keys(api_key_file),
        no_key=no_key,
        max_body=options.parse_size(load.max_body, "--max-body"),
        queue=load.queue,
        token_budget=load.token_budget,
        cors=tuple(load.cors or ()),
        allow_urls=tuple(load.allow_urls or ()),
        indexes=tuple(load.index or ()),
    )
    if not model and chosen.indexes:
        model = str(read_settings(chosen.indexes[0])["model"])
    settings = options.ModelSettings(model=model or options.MODEL, device=device, dtype=dtype)
    settings.check()
    try:
        from abc_embed.serve.run import run_server
    except ImportError:
        raise MissingExtraError.of("serve", "the server") from None

    def started(address: str) -> None:
        print_message(f"{settings.model} at {address} (the page), {address}/v1 (for clients)")

    print_message(f"loading {settings.model}")
    try:
        run_server(
            in_own_thread(settings.load), Path(settings.model).name, chosen, on_start=started
        )
    except OSError as error:
        raise OutputError(f"cannot listen on {host}:{port} ({error.strerror or error})") from None

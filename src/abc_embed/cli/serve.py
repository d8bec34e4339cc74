"""`abc-embed serve`: the model behind HTTP, on this machine alone unless told otherwise."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import epilog, print_message
from abc_embed.errors import MissingExtraError, OutputError

EXAMPLES = epilog("""
  abc-embed serve
  abc-embed serve --model runs/mine --port 9000
  abc-embed serve --host 0.0.0.0 --api-key-file keys.txt
""")


@options.with_settings
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
        bool,
        typer.Option(
            "--no-key", envvar="ABC_EMBED_NO_KEY", help="Let other machines in without a key."
        ),
    ] = False,
    max_body: Annotated[
        str, typer.Option(envvar="ABC_EMBED_MAX_BODY", help="Largest request.")
    ] = "32 MB",
    queue: Annotated[
        int, typer.Option(envvar="ABC_EMBED_QUEUE", help="Most items that wait or are computed.")
    ] = 1024,
    cors: Annotated[
        list[str] | None,
        typer.Option(envvar="ABC_EMBED_CORS", help="Origin of a page elsewhere that may ask."),
    ] = None,
    settings: options.ModelSettings,
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
        max_body=options.parse_size(max_body, "--max-body"),
        queue=queue,
        cors=tuple(cors or ()),
    )
    try:
        from abc_embed.serve.run import run_server
    except ImportError:
        raise MissingExtraError.of("serve", "the server") from None

    def started(address: str) -> None:
        print_message(f"{settings.model} at {address} (the page), {address}/v1 (for clients)")

    print_message(f"loading {settings.model}")
    try:
        run_server(settings.load(), Path(settings.model).name, chosen, on_start=started)
    except OSError as error:
        raise OutputError(f"cannot listen on {host}:{port} ({error.strerror or error})") from None

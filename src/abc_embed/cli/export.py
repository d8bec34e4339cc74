"""`abc-embed export`: a model as a folder that sentence-transformers loads too."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog, print_message

EXAMPLES = epilog("""
  abc-embed export exported
  abc-embed export exported --model runs/mine
""")


def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; a model of ours is replaced.")],
    model: options.Model = options.MODEL,
    dtype: options.Dtype = "auto",
    *,
    printer: Printer,
) -> None:
    """Write a model as a folder for Embedder and for sentence-transformers.

    Both give the same vectors. In Python: SentenceTransformer(folder, trust_remote_code=True).
    The folder holds no code: what runs is this package, which must be installed there.
    """
    embedder = options.ModelSettings(model=model, device="cpu", dtype=dtype).load()
    from abc_embed.interop.export import save_sentence_transformer

    written = save_sentence_transformer(embedder, folder)
    printer.json({"folder": str(written), "fingerprint": embedder.fingerprint})
    printer.line(str(written))
    print_message("load it with: SentenceTransformer(folder, trust_remote_code=True)")

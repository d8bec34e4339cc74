"""A model as a folder that both `Embedder.from_pretrained` and sentence-transformers load.

No library is needed, and no code is copied: the folder names a class of this package, which has to
be installed where the folder is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from abc_embed.card import MODULE, sentence_transformers_files
from abc_embed.checkpoint import save

if TYPE_CHECKING:
    from os import PathLike

    from abc_embed.embedder import Embedder

__all__ = ["MODULE", "save_sentence_transformer"]


def save_sentence_transformer(embedder: "Embedder", folder: "str | PathLike[str]") -> Path:
    """Write a folder that `SentenceTransformer(folder, trust_remote_code=True)` loads.

    Its vectors are those of `Embedder` in the same number format. All is written aside and renamed
    at the end; a model of ours in `folder` is replaced. Returns the folder.

    sentence-transformers 6 asks for `trust_remote_code` for every class outside itself. There is no
    code in the folder: what runs is this package, as installed.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    extra = sentence_transformers_files()
    save(embedder.model, embedder.processor, Path(folder), extra=extra)
    return Path(folder)

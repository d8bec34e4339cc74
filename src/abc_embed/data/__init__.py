"""Data sets on disk: records, the forms they are read and written in, and the published sets.

Its names load their files when they are first used: one who looks for pictures in a folder needs
no reader of Parquet.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_embed.data.dataset import Dataset, Rejected, Row
    from abc_embed.data.formats import open_dataset

__all__ = ["Dataset", "Rejected", "Row", "open_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "formats" if name == "open_dataset" else "dataset"
    return getattr(import_module(f"{__name__}.{home}"), name)

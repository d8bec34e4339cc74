"""Images on disk -> vectors -> search of a folder, or of an index that lasts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_embed.search.index import Index

__all__ = ["Index"]


def __getattr__(name: str) -> Any:
    """The index is imported when it is used: it needs the extra `index`."""
    if name == "Index":
        from abc_embed.search.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

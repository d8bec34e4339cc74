"""pyarrow, an optional package, imported when a Parquet file is first read or written."""

from typing import Any

from abc_embed.errors import MissingExtraError


def import_pyarrow(purpose: str = "reading Parquet", extra: str = "data") -> Any:
    """The module, with its parts for Parquet and for computing.

    Raises:
        MissingExtraError: it is not installed; says which extra brings it for `purpose`.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError.of(extra, purpose) from None
    return pyarrow

"""The images of a request: data: URLs, images of an index, and allowed addresses."""

from typing import TYPE_CHECKING

from abc_embed.errors import RequestError
from abc_embed.serve.fetch import Fetcher
from abc_embed.serve.fields import Fields, image_bytes, is_address

if TYPE_CHECKING:
    from abc_embed.serve.indexes import Indexes

MAX_FETCHED = 16
"""Addresses in one request."""


class ImageReader:
    """Reads the images of one request; `__call__` is a `fields.ReadImage`.

    Args:
        indexes: whose images may be named, as `{"index": "photos.index", "id": "…"}`.
        fetch: for addresses; None: these are refused.
    """

    def __init__(self, indexes: "Indexes | None" = None, fetch: Fetcher | None = None) -> None:
        self._indexes = indexes
        self._fetch = fetch
        self._fetched = 0

    def again(self) -> "ImageReader":
        """The same for another request."""
        return ImageReader(self._indexes, self._fetch)

    def __call__(self, value: object, place: str) -> bytes:
        """The bytes of an image file.

        Raises:
            RequestError: it cannot be read; the place is named.
        """
        if self._fetch is not None and is_address(value):
            self._fetched += 1
            if self._fetched > MAX_FETCHED:
                raise RequestError(f"more than {MAX_FETCHED} addresses in one request", place, 413)
            return self._fetch(str(value), place)
        if self._indexes is not None and isinstance(value, dict):
            fields = Fields(value, place)
            name, identity = fields.text("index"), fields.text("id", required=True)
            fields.done()
            return self._indexes.get(name, f"{place}.index").read(str(identity), f"{place}.id")
        return image_bytes(value, place)

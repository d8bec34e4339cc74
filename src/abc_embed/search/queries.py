"""What is searched for: items with weights, as in `"a dog" + 0.5*"snow" - "indoor"`, as one vector.

Shapes: `Q` queries, `D` width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abc_embed.errors import UsageError
from abc_embed.inputs import Item, as_item

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from abc_embed.embedder import Embedder

_QUOTED = r""""[^"]*"|'[^']*'"""
_PART = re.compile(
    rf"\s*(?P<sign>[+-]?)\s*(?:(?P<weight>\d+\.?\d*|\.\d+)\s*\*)?\s*(?P<text>{_QUOTED})\s*"
)


@dataclass(frozen=True, slots=True)
class Query:
    """A weighted sum of items."""

    parts: tuple[tuple[float, Item], ...]

    @property
    def kind(self) -> str:
        """`text`, `image`, `joint` (an image with an instruction), or `mix` of several."""
        if len(self.parts) > 1:
            return "mix"
        item = self.parts[0][1]
        return "text" if item.image is None else "joint" if item.instruction else "image"

    def __str__(self) -> str:
        """What it is called in a table."""
        if len(self.parts) == 1:
            return _name(self.parts[0][1])
        terms = []
        for weight, item in self.parts:
            factor = "" if abs(weight) == 1 else f"{abs(weight):g}*"
            terms.append(f'{"+-"[weight < 0]} {factor}"{_name(item)}"')
        return " ".join(terms).removeprefix("+ ")


def parse(text: str) -> Query:
    """A text, or words in quotes with weights.

    >>> [(weight, item.text) for weight, item in parse('"a dog" + 0.5*"snow" - "indoor"').parts]
    [(1.0, 'a dog'), (0.5, 'snow'), (-1.0, 'indoor')]

    Raises:
        UsageError: quotes, signs and weights that make no sum.
        TextError: a text is empty.
    """
    rest = re.sub(_QUOTED, "", text)
    if rest == text or re.search(r"[^\d\s.*+-]", rest):  # nothing in quotes, or words around them
        return Query(((1.0, Item(text=text)),))
    parts: list[tuple[float, Item]] = []
    at = 0
    while found := _PART.match(text, at):
        if parts and not found["sign"]:
            break
        weight = float(found["weight"] or 1) * (-1 if found["sign"] == "-" else 1)
        parts.append((weight, Item(text=found["text"][1:-1])))
        at = found.end()
    if at != len(text) or not parts:
        raise UsageError(f'{text!r} is no sum; write it like: "a dog" + 0.5*"snow" - "indoor"')
    if not any(weight > 0 for weight, _ in parts):
        raise UsageError(f"{text!r} says only what is not wanted; add what is")
    return Query(tuple(parts))


def as_query(value: "str | Item | Query") -> Query:
    """A text is read by `parse`, an item stands for itself."""
    if isinstance(value, Query):
        return value
    return parse(value) if isinstance(value, str) else Query(((1.0, as_item(value)),))


def embed_queries(
    queries: Sequence[Query], embedder: "Embedder", max_pixels: int | None
) -> "NDArray[np.float32]":
    """`(Q, D)` at unit length; each image and text goes through the model once.

    Raises:
        InputError: an item cannot be embedded.
        UsageError: the parts of a sum cancel out.
    """
    items = [item for query in queries for _, item in query.parts]
    return weighted_sums(queries, embedder.embed(items, max_pixels=max_pixels))


def weighted_sums(
    queries: Sequence[Query], vectors: "NDArray[np.float32]"
) -> "NDArray[np.float32]":
    """`(Q, D)` at unit length, from the vectors of all parts of all queries, in their order.

    Raises:
        UsageError: the parts of a sum cancel out.
    """
    import numpy as np  # here: a query that a server answers has no use for it

    from abc_embed.vectors import l2_normalize

    sums = np.zeros((len(queries), vectors.shape[1]), dtype=np.float64)
    at = 0
    for row, query in enumerate(queries):
        weights = np.array([weight for weight, _ in query.parts])
        sums[row] = weights @ vectors[at : at + len(weights)]
        at += len(weights)
    cancels = UsageError("the parts of a sum cancel out, so it points nowhere")
    return l2_normalize(sums, cancels).astype(np.float32)


def _name(item: Item) -> str:
    if item.text is not None:
        return item.text
    image = item.image if isinstance(item.image, str) else "the image"
    return f"{image}: {item.instruction}" if item.instruction else image

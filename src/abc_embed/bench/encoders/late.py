"""Late fusion: the vector of an image and that of the instruction, added.

Why it is here: it is what people do who have no joint model, and a benchmark that it solves does
not measure control (the composition gap is the lead over it).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from abc_embed.bench.encoders.base import Encoder, Vectors, checked, takes_in_words, unit
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind
from abc_embed.pipeline import image_key


class LateFusion:
    """Another encoder, which sees an image and its instruction apart.

    Texts and images alone have the vectors of the other encoder. Both parts are unit vectors before
    they are added, so neither outweighs the other.

    Raises:
        UsageError: the other encoder does not take both images and texts.
    """

    def __init__(self, inner: Encoder) -> None:
        if not {Kind.TEXT, Kind.IMAGE} <= inner.takes:
            raise UsageError(
                f"late fusion adds an image vector and a text vector, and {inner.name} does not "
                "take both; choose a model that does"
            )
        self.inner = inner
        self.takes = frozenset(Kind)
        self.name = f"late:{inner.name}"

    @property
    def fingerprint(self) -> str:
        """SHA-256, from that of the other encoder."""
        return hashlib.sha256(f"late {self.inner.fingerprint}".encode()).hexdigest()

    @property
    def dim(self) -> int:
        """That of the other encoder."""
        return self.inner.dim

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """As `Encoder.embed`; each picture and each instruction is embedded once."""
        values = checked(items, self.takes, self.name)
        parts: list[Item] = []
        places: dict[Any, int] = {}

        def place(key: Any, part: Item) -> int:
            if key not in places:
                places[key] = len(parts)
                parts.append(part)
            return places[key]

        rows: list[list[int]] = []
        for item in values:
            row: list[int] = []
            if item.image is not None:
                row.append(place(("image", image_key(item)), Item(image=item.image)))
            text = item.text if item.image is None else item.instruction
            if text is not None:
                row.append(place(("text", text), Item(text=text)))
            rows.append(row)
        vectors = self.inner.embed(parts, max_pixels=max_pixels, progress=progress)
        found = vectors[[row[0] for row in rows]]
        both = [number for number, row in enumerate(rows) if len(row) == 2]
        if both:
            words = vectors[[rows[number][1] for number in both]]
            found[both] = unit(found[both] + words, self.name)
        return found

    def describe(self) -> dict[str, Any]:
        """As `Encoder.describe`; what the other encoder says, and that it is late fusion."""
        said = self.inner.describe()
        return {
            **said,
            "kind": f"late fusion of {said['kind']}",
            "takes": takes_in_words(self.takes),
        }

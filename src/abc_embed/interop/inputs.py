"""What the frameworks hand over -> our items; a model by its name, loaded once a process."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

from abc_embed.embedder import Embedder
from abc_embed.errors import InputError
from abc_embed.inputs import ImageInput, Item, is_single


@lru_cache(maxsize=4)
def load_model(name: str, device: str = "auto") -> Embedder:
    """A model for those who write down its name and load it again; kept, as they do so often.

    Raises:
        CheckpointError, DeviceError: as `Embedder.from_pretrained`.
    """
    return Embedder.from_pretrained(name, device=device)


def to_text(value: object) -> Item:
    """A text; a `TextError` or `InputError` where the value is none."""
    return Item(text=cast(str, value))


def to_image(value: Any, instruction: str | None = None) -> Item:
    """A picture as in `inputs.ImageInput`, with the instruction; an `Item` stays as it is.

    Raises:
        InputError: an `Item` that has no picture, or an instruction of its own beside the other.
    """
    if not isinstance(value, Item):
        return Item(image=cast(ImageInput, value), instruction=instruction)
    if value.image is None:
        raise InputError("the item is a text; give an image, or an Item with one")
    if instruction is not None and value.instruction is not None:
        raise InputError("there are two instructions, the item's and the call's; give one")
    return Item(image=value.image, instruction=value.instruction or instruction)


def many(values: Any, what: str) -> list[Any]:
    """The values as a list; refuses a single one, which would be taken apart into letters.

    Raises:
        InputError: a single value, or none that can be gone through.
    """
    if not isinstance(values, Iterable) or is_single(values):
        kind = type(values).__name__
        raise InputError(f"{what} must be a list, and this is one {kind}; put it in a list")
    return list(values)


def embed(model: Embedder, items: list[Item], batch_size: int | None = None) -> list[list[float]]:
    """One list of floats an item, as these frameworks want them."""
    return cast(list[list[float]], model.embed(items, batch_size=batch_size).tolist())

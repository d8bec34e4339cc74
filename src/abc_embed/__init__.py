"""ABC: one vector for an image and an instruction, from a vision-language model.

>>> from abc_embed import Embedder, Item                           # doctest: +SKIP
>>> model = Embedder.from_pretrained("bundled")                    # doctest: +SKIP
>>> model.embed(Item(image="photo.jpg", instruction="what is on the left?"))  # doctest: +SKIP

Importing the package loads none of its files: a name loads its file when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.inputs import Item

__version__ = "0.1.0"
__all__ = ["Embedder", "Item"]

_HOMES = {"Embedder": "embedder", "Item": "inputs"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # from now on an ordinary attribute
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

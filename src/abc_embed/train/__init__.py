"""Training: stage 1 (image to caption) and stage 2 (image and instruction to answer).

Importing the package loads none of its files: a name loads its file when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abc_embed.train.config import TrainConfig, load_config
    from abc_embed.train.run import train

__all__ = ["TrainConfig", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = "run" if name == "train" else "config"
    return getattr(import_module(f"{__name__}.{home}"), name)

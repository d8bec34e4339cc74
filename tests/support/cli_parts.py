"""What the tests of the command line share: the result of a command, pictures, leftovers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a command that failed."""
        assert self.err.count("Error: ") == 1, self.err
        return self.err.partition("Error: ")[2].strip()


Cli = Callable[..., Done]


def picture(seed: int, size: tuple[int, int] = (70, 60)) -> Image.Image:
    """A picture of its own for every seed: a soft gradient."""
    values = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def leftovers(folder: Path, known: set[str]) -> set[str]:
    """Names in a folder that were not there before, hidden ones too."""
    return {path.name for path in folder.iterdir()} - known

"""The golden model, and one picture in every form."""

from pathlib import Path

import numpy as np
import pytest
from golden_parts import BASE, INSTRUCT, PRETRAIN
from PIL import Image

from abc_embed import Embedder


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """A small random model with both stages."""
    return Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures of different sizes and modes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    paths = [folder / "a.png", folder / "b.png"]
    Image.fromarray(rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(paths[0])
    Image.fromarray(rng.integers(0, 256, (84, 56), dtype=np.uint8)).save(paths[1])  # grey
    return paths

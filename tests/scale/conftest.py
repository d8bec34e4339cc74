"""Pictures of boxes, and a folder of vectors that was made without Ray."""

from pathlib import Path

import pytest
from batch_parts import batch_without_ray, draw_boxes


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures with records."""
    return Path(draw_boxes(60, tmp_path_factory.mktemp("boxes") / "boxes"))


@pytest.fixture(scope="session")
def made(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All their vectors."""
    out = tmp_path_factory.mktemp("made") / "vectors"
    batch_without_ray(str(boxes), out, range(60))
    return out

"""Records small enough to train on in a second."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COUNT = 6


def write_data(folder: Path, order: Sequence[int] = range(COUNT), text: str = "caption") -> None:
    folder.mkdir(exist_ok=True)
    lines = []
    for i in order:
        Image.new("RGB", (56, 56), (40 * i, 0, 90)).save(folder / f"{i}.png")
        record = {"id": f"r{i}", "image": f"{i}.png", "caption": f"{text} {i}"}
        lines.append(json.dumps(record | {"width": 56, "height": 56, "negatives": [f"wrong {i}"]}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")

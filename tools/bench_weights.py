"""What weights of 8 and 4 bits cost in quality: the bundled model's CtrlBench, and cosines.

    python tools/bench_weights.py [--tier G] [--limit 100] [--out results/speed/weights-cpu.json]

Each format answers the same questions in one run; the cosines are those with the float32 vectors of
the same items. Needs the extra `quant`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_embed import Embedder, runtime
from abc_embed.bench.ctrlbench.measure import measure
from abc_embed.bench.ctrlbench.tiers import load
from abc_embed.bench.encoders.registry import NativeEncoder


class Kept(NativeEncoder):
    """Keeps the vectors that it gave."""

    def _embed(self, items: Any) -> Any:
        vectors = super()._embed(items)
        self.vectors = [*getattr(self, "vectors", []), *vectors]
        return vectors


def bytes_of(embedder: Embedder) -> int:
    """Of the layers of both encoders."""
    total = 0
    for layer in embedder.model.backbone.layers():
        for value in layer.state_dict().values():
            parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else None
            tensors = [value] if parts is None else [getattr(value, part) for part in parts]
            total += sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", default="G")
    parser.add_argument("--limit", type=int, default=100, help="pictures")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    benchmark = load(arguments.tier)
    results: dict[str, Any] = {}
    plain: Any = None
    for weights in (None, "int8", "int4"):
        embedder = Embedder.from_pretrained("bundled", device="cpu", weights=weights)
        encoder = Kept(embedder, "bundled")
        size = bytes_of(embedder)
        found = measure(
            encoder,
            benchmark,
            arguments.tier,
            limit=arguments.limit,
            conditions=("joint", "image"),
        )
        vectors = np.stack(encoder.vectors)
        plain = vectors if plain is None else plain
        cosines = (plain * vectors).sum(axis=1)
        joint = found["scores"]["joint"]
        results[weights or "float32"] = {
            "r1": joint["r1"],
            "r1_interval": joint["r1_interval"],
            "of": joint["of"],
            "cosine_mean": round(float(cosines.mean()), 6),
            "cosine_least": round(float(cosines.min()), 6),
            "layer_bytes": size,
        }
        print(weights, results[weights or "float32"], flush=True)
    record = {
        "what": f"CtrlBench tier {arguments.tier}, image + instruction, its first "
        f"{arguments.limit} pictures; cosines with the vectors of float32",
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

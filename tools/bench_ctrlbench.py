"""What do all controls of CtrlBench cost, compared with image + instruction alone?

    python tools/bench_ctrlbench.py [G B S]

Processor seconds of one process, bundled model, every vector embedded anew; a Markdown table.
"""

import sys
import time

from abc_embed.bench.ctrlbench import tiers
from abc_embed.bench.ctrlbench.measure import CONDITIONS, measure
from abc_embed.bench.encoders.registry import CachedEncoder, load_encoder


def main(names: list[str]) -> None:
    encoder = load_encoder("bundled", device="cpu")
    encoder.embed(["warm"])
    print("| tier | items, joint alone | items, all | joint alone, s | all controls, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        benchmark = tiers.load(name)
        seconds, items = [], []
        for conditions in (("joint",), CONDITIONS):
            began = time.process_time()
            cached = CachedEncoder(encoder)
            record = measure(cached, benchmark, name, conditions=conditions)
            seconds.append(time.process_time() - began)
            items.append(record["cost"]["items"])
        ratio = seconds[1] / seconds[0]
        print(f"| {name} | {items[0]:,} | {items[1]:,} ", end="")
        print(f"| {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["G", "B"])

"""The engine now against the engine of another commit: processor time, interleaved, as ratios.

    git worktree add ../before COMMIT
    python tools/bench_engine.py --against ../before/src [--out results/speed/engine-cpu.json]
    python tools/bench_engine.py --compile [--out results/speed/compile-cpu.json]

Two processes, one thread each, load the same weights and embed the same items at default settings;
they take turns, so that what else the machine does hits both alike. A ratio is the time of the
other commit over the time now, the median of all rounds: above 1 is faster now. With `--compile`
the one that is "now" has compiled layers, and the one "before" is the same package without.

Models: `bundled` (8 M parameters, 16 to 22 visual tokens), and `55m`, made on the spot with random
weights of Qwen2-VL's shape and a stage-2 adapter, 256 visual tokens a picture.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("single texts", "64 pictures", "mixed list", "32 pictures x 4 instructions")
GOALS = dict(zip(CASES, (1.5, 1.2, 1.15, 1.2), strict=True))
BUNDLED = Path(__file__).resolve().parents[1] / "src/abc_embed/bundled/model"
WORKLOADS = Path(__file__).resolve().parents[1] / "src/abc_embed/speed/workloads.py"


def read_workloads() -> Any:
    """The workloads of this checkout, beside whatever package is measured."""
    spec: Any = importlib.util.spec_from_file_location("workloads", WORKLOADS)
    module = sys.modules["workloads"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def middle_model(bundled: Any) -> Any:
    """A random model of 55 M parameters around the bundled model's words."""
    import torch

    from abc_embed import Embedder
    from abc_embed.adapters import attach_stage2
    from abc_embed.backbone import build_backbone, parse_config
    from abc_embed.model import AbcModel
    from abc_embed.pixels import ImageBudget
    from abc_embed.processor import Processor

    values = json.loads(json.dumps(bundled.model.backbone.vlm.config.to_dict()))
    values["text_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "layer_types": ["full_attention"] * 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [8, 12, 12],
        },
    }
    values["vision_config"] |= {
        "embed_dim": 384,
        "depth": 8,
        "num_heads": 6,
        "mlp_ratio": 4,
        "hidden_size": 512,
    }
    torch.manual_seed(0)
    model = AbcModel(build_backbone(parse_config(values)), head_width=512)
    attach_stage2(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    side = 16 * 28
    budget = ImageBudget(min_pixels=side * side, max_pixels=side * side)
    chat = bundled.processor.chat
    processor = Processor(
        chat.tokenizer, chat.template, budget, image_token_id=chat.image_token_id, max_tokens=4096
    )
    return Embedder(model.requires_grad_(False).eval(), processor)


def items_of(case: str) -> list[Any]:
    """The items of a case, the same in every process."""
    workloads = read_workloads()
    photos = workloads.draw_photos(64)
    found = {
        "single texts": lambda: workloads.texts(40),
        "64 pictures": lambda: workloads.images(photos),
        "mixed list": lambda: workloads.mixed(photos),
        "32 pictures x 4 instructions": lambda: workloads.instructed(photos[:32], 4),
    }
    items: list[Any] = found[case]().items
    return items


def work(folder: Path, compiled: bool) -> None:
    """The worker: answers each case on stdin with processor and wall seconds, and a checksum."""
    import numpy as np
    import torch

    from abc_embed import Embedder

    torch.set_num_threads(1)
    bundled = Embedder.from_pretrained(BUNDLED, device="cpu")  # the same weights in both
    models = {"bundled": bundled, "55m": middle_model(bundled)}
    cases = {case: items_of(case) for case in CASES}
    for model in models.values() if compiled else ():
        model.compile()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        name, case = line.rstrip("\n").split("\t")
        model, items = models[name], cases[case]
        cpu, wall = time.process_time(), time.perf_counter()
        if case == "single texts":
            vectors = np.stack([model.embed(item) for item in items])
        else:
            vectors = model.embed(items)
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        np.save(folder / f"{os.getpid()}.npy", vectors)
        sys.stdout.write(json.dumps(took) + "\n")
        sys.stdout.flush()


class Worker:
    """A process that embeds with the package of one source folder."""

    def __init__(self, source: Path, folder: Path, compiled: bool = False) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.process: Any = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder), *["--compile"] * compiled],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.vectors = folder / f"{self.process.pid}.npy"

    def ask(self, line: str) -> str:
        """One line to the worker, one line back."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line of the worker."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker stopped; its message is above")
        return line


def measure(
    now: Worker, before: Worker, rounds: int, names: list[str], cases: list[str]
) -> dict[str, Any]:
    """The ratios of every model and case, and how far apart the vectors of the two are."""
    import numpy as np

    results: dict[str, Any] = {}
    for name in names:
        for case in cases:
            times: dict[str, list[float]] = {"now": [], "before": []}
            ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
            for number in range(rounds + 1):
                pair = {}
                order = [("now", now), ("before", before)]
                for label, worker in order if number % 2 else order[::-1]:
                    pair[label] = json.loads(worker.ask(f"{name}\t{case}"))
                if number == 0:  # the first warms up
                    continue
                for label in times:
                    times[label].append(pair[label]["cpu"])
                for clock, values in ratios.items():
                    values.append(pair["before"][clock] / pair["now"][clock])
            apart = np.abs(np.load(now.vectors) - np.load(before.vectors)).max()
            results[f"{name}, {case}"] = {
                "cpu_ratio": round(statistics.median(ratios["cpu"]), 3),
                "cpu_ratio_range": [round(min(ratios["cpu"]), 3), round(max(ratios["cpu"]), 3)],
                "wall_ratio": round(statistics.median(ratios["wall"]), 3),
                "goal": GOALS[case],
                "rounds": rounds,
                "cpu_s_now": round(statistics.median(times["now"]), 4),
                "cpu_s_before": round(statistics.median(times["before"]), 4),
                "largest_difference_of_a_vector": float(f"{apart:.1e}"),
            }
            print(f"{name}, {case}: {results[f'{name}, {case}']}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="src folder of the other commit")
    parser.add_argument("--compile", action="store_true", help="against layers not compiled")
    parser.add_argument("--commit", default="", help="what to call it in the record")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=["bundled", "55m"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--out", type=Path, help="a record; cases that it has and this run lacks stay"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.compile)
        return
    from abc_embed import runtime

    own = Path(__file__).resolve().parents[1] / "src"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        now = Worker(own, folder, arguments.compile)
        before = Worker(arguments.against or own, folder)
        for worker in (now, before):
            worker.answer()
        results = measure(now, before, arguments.rounds, arguments.models, arguments.cases)
        for worker in (now, before):
            worker.process.kill()
            worker.process.wait()
    record = {
        "what": "time before over time now, processor seconds of one thread, interleaved",
        "before": "layers not compiled" if arguments.compile else arguments.commit,
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
        "results": results,
    }
    if arguments.out:
        if arguments.out.is_file():
            record["results"] = json.loads(arguments.out.read_text())["results"] | results
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

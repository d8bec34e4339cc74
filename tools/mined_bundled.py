"""The bundled model's stages 1 and 2 again: without negatives, with the generator's, and mined.

    python tools/mined_bundled.py runs/bundled --out runs/negatives [--seed 5] [--arms none mined]

`runs/bundled` is what `make bundled` left; its `base` is where every arm begins. All
arms see the same pictures and captions in the same order, and differ in the negatives of stage 1
alone. As in the paper (section 3), a run without negatives gives the model that mines. Every part
that is finished is kept, so a run that was broken off goes on. Ends with a table and results.json.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from abc_embed import Embedder, Item, checkpoint
from abc_embed.data.records import Record, write_records
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import caption, same_meaning
from abc_embed.scenes.render import render
from abc_embed.train.config import DataConfig
from abc_embed.train.loop import run_stage
from abc_embed.train.sampler import RecordSampler
from experiments.curriculum.run import Lengths, stage_config
from experiments.curriculum.sampler import SceneSampler

ARMS = ("none", "scenes", "mined")
NEGATIVES = 3
"""Of an image in each step, as in the recipe; 7 are kept to draw from."""
UNSEEN = 7001
"""A world that no training sees."""


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """The first `count` pictures of the recipe's stage 1 as records with the generator's texts."""
    if (folder / "records.jsonl").exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for number, group in enumerate(SceneSampler("pretrain", negatives=7).groups(0, count, seed)):
        name = f"images/{number:06}.png"
        picture = Image.fromarray(np.asarray(group.image))
        picture.save(folder / name)
        records.append(
            Record(
                id=f"stage1-{seed}-{number:06}",
                image=name,
                width=picture.width,
                height=picture.height,
                caption=group.asks[0][1],
                negatives=group.negatives,
                source="abc-embed scenes",
                license="MIT",
            )
        )
    write_records(folder / "records.jsonl", records)


def command(*arguments: object) -> str:
    """What `abc-embed` prints."""
    line = [sys.executable, "-m", "abc_embed", *map(str, arguments)]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def mine(pictures: Path, model: Path) -> None:
    """Mined negatives next to the generator's, and the report of how they were found."""
    if not (pictures / "mined.json").exists():
        words = ("mine", pictures, "--out", pictures / "mined.jsonl", "--model", model)
        report = command(*words, "--device", "cpu", "--json")
        (pictures / "mined.json").write_text(report)


def train(start: Path, out: Path, arm: str, pictures: Path, steps: Lengths, seed: int) -> None:
    """Both stages of one arm; `out/stage1/model` and `out/model`."""
    if not (out / "stage1" / "done").exists():
        config = stage_config("pretrain", out, steps.stage1)
        config = replace(
            config,
            train=replace(config.train, seed=seed),
            model=replace(config.model, base=str(start)),
        )
        data = DataConfig(negatives=0 if arm == "none" else NEGATIVES)
        records = pictures / ("mined.jsonl" if arm == "mined" else "records.jsonl")
        model, processor = checkpoint.load(str(start))
        sampler = RecordSampler(records, "pretrain", data)
        run_stage(config, sampler, model, processor, out / "stage1")
        (out / "stage1" / "done").touch()
    if not (out / "stage2" / "done").exists():
        config = stage_config("instruct", out, steps.stage2)
        config = replace(config, train=replace(config.train, seed=seed + 1))
        model, processor = checkpoint.load(str(out / "stage1" / "model"))
        run_stage(config, SceneSampler("instruct", negatives=4), model, processor, out / "stage2")
        (out / "stage2" / "done").touch()


def captions_found(model: Path, count: int = 400) -> dict[str, float]:
    """Of unseen pictures and their mirrors: own caption first among all, and above the mirror's."""
    scenes = [make_scene(UNSEEN, index) for index in range(count)]
    scenes = [s for s in scenes if not same_meaning(caption(s), caption(s.mirrored()))]
    scenes = [side for s in scenes for side in (s, s.mirrored())]
    texts = [caption(scene) for scene in scenes]
    embedder = Embedder.from_pretrained(model, device="cpu")
    images = embedder.embed([Item(image=render(scene)) for scene in scenes])
    scores = images @ embedder.embed(texts).T
    own = scores.diagonal()
    rows = np.arange(len(scores))
    first = (scores > own[:, None]).sum(axis=1) == 0
    return {
        "captions": len(texts),
        "caption_first": float(first.mean()),
        "above_mirror": float((own > scores[rows, rows ^ 1]).mean()),
    }


def measure(out: Path) -> dict[str, Any]:
    """What a finished arm can do."""
    path = out / "measured.json"
    if not path.exists():
        words = ("bench", "ctrlbench", "--tier", "S", "--model", out / "stage2" / "model")
        record = json.loads(command(*words, "--device", "cpu", "--json"))
        found = {**captions_found(out / "stage1" / "model"), "record": record}
        path.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(path.read_text())
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=Path, help="what make bundled left")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--count", type=int, default=6000, help="pictures to mine among")
    parser.add_argument("--seed", type=int, default=5, help="of pictures and both stages")
    parser.add_argument("--scale", type=float, default=1.0, help="longer or shorter runs")
    args = parser.parse_args()
    steps = Lengths().scaled(args.scale)
    pictures = args.out / f"pictures-{args.seed}"
    write_pictures(pictures, args.count, args.seed)
    start = args.start / "base"
    results = {}
    for arm in args.arms:
        out = args.out / f"{arm}-{args.seed}"
        if arm == "mined":
            miner = args.out / f"none-{args.seed}"
            if not (miner / "stage1" / "done").exists():
                train(start, miner, "none", pictures, steps, args.seed)
            mine(pictures, miner / "stage1" / "model")
        train(start, out, arm, pictures, steps, args.seed)
        results[arm] = measure(out)
        (args.out / f"results-{args.seed}.json").write_text(json.dumps(results, indent=1) + "\n")
    for arm, found in results.items():
        print(arm, found)


if __name__ == "__main__":
    main()

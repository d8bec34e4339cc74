"""Validation during training: right figures, the same run as without, the best kept, early ends."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from process_parts import run_processes, values
from run_parts import write_data

from abc_embed import Embedder, Item
from abc_embed.errors import ConfigError, DataError, TruncatedImageError
from abc_embed.train.config import TrainConfig, ValidationConfig
from abc_embed.train.loop import run_stage
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.plot import draw_runs
from abc_embed.train.run import train_from_config
from abc_embed.train.validation import VALIDATION_FILE, ValidationRecord, read_validation


def ask(folder: Path) -> Path:
    """Two questions about each image; every answer answers two of them."""
    file = folder / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["instructions"] = [
            {"instruction": f"{side}?", "answer": f"{side} {number // 2}", "kind": "place"}
            for side in ("left", "right")
        ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "validation")
    return ask(tmp_path / "validation")


def validated(config: TrainConfig, data: Path, **settings: Any) -> TrainConfig:
    made = replace(config, validation=ValidationConfig(records=str(data), **settings))
    return replace(made, model=replace(config.model, device="cpu"))


def train(config: TrainConfig, tiny: Any, pictures: Any, out: Path, **options: Any) -> Any:
    sampler = options.pop("sampler", None) or pictures(config.stage)
    chosen = read_validation(config.validation, config.stage) if config.validation.records else None
    return run_stage(config, sampler, *tiny(), out, validation=chosen, **options)


def without_time(out: Path) -> list[dict[str, Any]]:
    clock = ("items_per_s", "wait_share", "elapsed_s")
    rows = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("chunk_size", [0, 3])
def test_the_run_is_the_same_to_the_last_bit(
    stage: str, chunk_size: int, data: Path, tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    plain = config(stage, steps=4, dropout=0.2, chunk_size=chunk_size)
    train(plain, tiny, pictures, tmp_path / "without")
    train(validated(plain, data, every=1), tiny, pictures, tmp_path / "with")
    assert without_time(tmp_path / "with") == without_time(tmp_path / "without")
    for name in ("model.safetensors", "head.safetensors"):
        one, two = ((tmp_path / d / "model" / name).read_bytes() for d in ("with", "without"))
        assert one == two
    rows = read_metrics(tmp_path / "with" / VALIDATION_FILE)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert len({row["loss"] for row in rows}) == 5


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_the_figures_are_those_of_the_saved_model(
    stage: str, data: Path, tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    settings = validated(config(stage, steps=3), data, every=2)
    train(settings, tiny, pictures, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / VALIDATION_FILE)
    assert [row["step"] for row in rows] == [0, 2, 3]
    model = Embedder.from_pretrained(tmp_path / "run", device="cpu")
    records = [json.loads(line) for line in (data / "records.jsonl").read_text().splitlines()]
    asks = [(data / r["image"], a) for r in records for a in r["instructions"]]
    if stage == "pretrain":
        right = [r["caption"] for r in records]
        queries = {"": [Item(image=data / r["image"]) for r in records]}
    else:
        right = [a["answer"] for _, a in asks]
        queries = {
            "": [Item(image=image, instruction=a["instruction"]) for image, a in asks],
            "image_": [Item(image=image) for image, _ in asks],
        }
    texts = list(dict.fromkeys(right))
    numbers = [texts.index(text) for text in right]
    for prefix, items in queries.items():
        scores = model.embed(items).astype(float) @ model.embed(texts).astype(float).T
        logs = scores / model.model.temperature.value
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        places = range(len(numbers))
        loss = -logs[places, numbers].mean()
        best = scores[places, numbers].copy()
        scores[places, numbers] = -2
        assert rows[-1][f"{prefix}loss"] == pytest.approx(loss, abs=1e-5)
        assert rows[-1][f"{prefix}r1"] == pytest.approx((best > scores.max(axis=1)).mean())
    assert (rows[-1]["image_r1"] is None) == (stage == "pretrain")


def test_kinds_of_questions_are_told_apart_and_luck_is_said(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path / "data")
    ask(tmp_path / "data")
    file = tmp_path / "data" / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for number in range(40 - len(lines)):  # as many as it takes to speak of chance
        lines.append(lines[number] | {"id": f"again-{number}"})
    for number, line in enumerate(lines):
        line["instructions"] = [
            {
                "instruction": "heads or tails?",
                "answer": ("heads", "tails")[number % 2],
                "kind": "coin",
            },
            {"instruction": "what is it?", "answer": f"thing {number % 5}", "kind": "kind"},
        ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level("INFO"):
        settings = validated(config("instruct", steps=1), tmp_path / "data")
        train(settings, tiny, pictures, tmp_path / "run")
    last = read_metrics(tmp_path / "run" / VALIDATION_FILE)[-1]["kinds"]
    assert {name: (one["of"], one["chance"]) for name, one in last.items()} == {
        "coin": (40, 0.5),
        "kind": (40, 0.2),
    }
    assert f", coin {last['coin']['value']:.3f}, kind {last['kind']['value']:.3f}" in caplog.text
    warned = [r.getMessage() for r in caplog.records if "is at chance" in r.getMessage()]
    assert any(line.startswith("validation: 'coin'") for line in warned)
    assert len(warned) == len({line.split("'")[1] for line in warned})  # once, in the end


def test_a_ctrlbench_folder_is_asked_too(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    from abc_embed.bench.ctrlbench import replica
    from abc_embed.data.records import read_records

    write_data(tmp_path / "source")
    ask(tmp_path / "source")
    pairs = replica.pairs_from_records(read_records(tmp_path / "source"), tmp_path / "source")
    replica.build(tmp_path / "bench", pairs, how="test", about={}, leaks=True)
    settings = validated(config("instruct", steps=1), tmp_path / "bench", images=4)
    train(settings, tiny, pictures, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / VALIDATION_FILE)
    assert [row["questions"] for row in rows] == [8, 8]  # two of each image
    assert [row["candidates"] for row in rows] == [6, 6]  # the whole corpus
    assert all(0 <= row["image_r1"] <= 1 for row in rows)


def test_the_best_is_kept_and_enough_is_enough(
    data: Path,
    tiny: Any,
    config: Any,
    pictures: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from abc_embed.train import validation

    shares = {0: 0.1, 1: 0.2, 2: 0.6, 3: 0.5, 4: 0.6, 5: 0.3, 6: 0.9}

    def measure(self: Any, step: int) -> ValidationRecord:
        return ValidationRecord(step, 1.0 + step, shares[step], None, None, 6, 6)

    monkeypatch.setattr(validation.Validator, "measure", measure)
    caplog.set_level("INFO", "abc_embed")
    settings = validated(config("instruct", steps=9, checkpoint_every=2), data, every=1, patience=3)
    with pytest.raises(KeyboardInterrupt):
        sampler = pictures("instruct", stop_before=3)
        train(settings, tiny, pictures, tmp_path / "run", sampler=sampler)
    train(settings, tiny, pictures, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / VALIDATION_FILE)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert any("stopped early at step 5: 3 validations" in message for message in caplog.messages)
    state = json.loads((tmp_path / "run" / "checkpoints" / "best" / "state.json").read_text())
    assert state["step"] == 2 and state["best"]["r1"] == 0.6
    description = json.loads((tmp_path / "run" / "model" / "abc.json").read_text())
    assert description["training"][-1]["steps"] == 5
    train(settings, tiny, pictures, tmp_path / "run", sampler=pictures("instruct", stop_before=5))
    assert len(read_metrics(tmp_path / "run" / VALIDATION_FILE)) == 6  # nothing more was done


def test_equal_shares_are_told_apart_by_the_loss() -> None:
    one, two = (ValidationRecord(1, loss, 0.5, None, None, 2, 2) for loss in (1.0, 2.0))
    assert one.better_than(two) and not two.better_than(one) and not one.better_than(one)


def test_several_processes_share_the_work(data: Path, config: Any, tmp_path: Path) -> None:
    from process_parts import small_config, validated_run

    settings = validated(small_config("instruct", steps=2, chunk_size=2), data, every=1)
    for count in (1, 2):
        values(run_processes(count, validated_run, settings, tmp_path / str(count)))
    one, two = (read_metrics(tmp_path / n / VALIDATION_FILE) for n in ("1", "2"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["r1"] == b["r1"]


def test_curves_of_validation_are_drawn(
    data: Path, tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    settings = validated(config("instruct", steps=2), data, every=1)
    train(settings, tiny, pictures, tmp_path / "with")
    train(config("instruct", steps=2), tiny, pictures, tmp_path / "without")
    heights = []
    for runs in (["without"], ["with", "without"]):
        draw_runs([tmp_path / run for run in runs], tmp_path / "runs.png")
        with Image.open(tmp_path / "runs.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 1.3 * heights[0]


# -- wrong sets ------------------------------------------------------------------------------------

RECIPE = """\
stage = "pretrain"
out = "{root}/run"
[model]
base = "{base}"
head_width = 96
device = "cpu"
[data]
records = "{root}/train"
negatives = 1
[adapter]
rank = 4
alpha = 8
[train]
steps = 1
batch_size = 3
[validation]
records = "{root}/validation"
"""


def test_pictures_of_the_training_are_refused(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(root=tmp_path, base=golden / "base"))
    write_data(tmp_path / "train")
    write_data(tmp_path / "validation", order=(4, 5), text="another")
    (tmp_path / "validation" / "5.png").unlink()
    Image.new("RGB", (56, 56), (1, 2, 3)).save(tmp_path / "validation" / "5.png")
    message = r"1 pictures of data\.records are in validation\.records too, .*:5 as .*:1 the first"
    with pytest.raises(DataError, match=message):
        train_from_config(path)
    assert not (tmp_path / "run").exists()
    train_from_config(path, ["validation.allow_overlap=true"])
    shutil.rmtree(tmp_path / "run")
    Image.new("RGB", (56, 56), (3, 2, 3)).save(tmp_path / "validation" / "4.png")
    train_from_config(path)
    assert len(read_metrics(tmp_path / "run" / VALIDATION_FILE)) == 2
    with pytest.raises(ConfigError, match=r"validation\.records is missing"):
        train_from_config(path, ["validation.records=''", "validation.every=3"])


def test_a_set_that_asks_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "captions")
    with pytest.raises(
        DataError, match="nothing to choose between; give records with instructions"
    ):
        read_validation(ValidationConfig(records=str(tmp_path / "captions")), "instruct")
    assert (
        len(read_validation(ValidationConfig(records=str(data), images=2), "pretrain").texts) == 2
    )


def test_a_bad_picture_is_named(
    data: Path, tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    file = data / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    settings = validated(config("pretrain", steps=1), data)
    with pytest.raises(TruncatedImageError, match=r"records\.jsonl:4: "):
        train(settings, tiny, pictures, tmp_path / "run")

"""Training on data that are in memory: the run is that of the same data in files."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from golden_parts import BASE
from PIL import Image
from run_parts import COUNT, write_data

from abc_embed.data import open_dataset
from abc_embed.data.records import Record, read_records
from abc_embed.errors import ConfigError, DataError
from abc_embed.train import TrainConfig, load_config, train
from abc_embed.train.batches import Group
from abc_embed.train.config import DataConfig
from abc_embed.train.sampler import RecordSampler

RECIPE = """\
stage = "pretrain"
out = "{folder}/files"
[model]
base = "{base}"
head_width = 96
pixels = [784, 3136]
device = "cpu"
[data]
records = "{folder}"
negatives = 0
workers = {workers}
[adapter]
rank = 4
alpha = 8
[train]
steps = 3
batch_size = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def recipe(folder: Path, workers: int = 0) -> TrainConfig:
    path = folder / "run.toml"
    path.write_text(RECIPE.format(folder=folder, base=BASE, workers=workers))
    return load_config(path)


def elsewhere(config: TrainConfig, out: Path) -> TrainConfig:
    return replace(config, out=str(out), data=replace(config.data, records=""))


def curve(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def pictures(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(COUNT):
        with Image.open(folder / f"{number}.png") as picture:
            rows.append({"image": picture.copy(), "caption": f"caption {number}"})
    return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_of_hugging_face_trains_like_its_files(workers: int, folder: Path) -> None:
    config = recipe(folder, workers)
    train(config)
    data = datasets.Dataset.from_list(
        pictures(folder),
        features=datasets.Features(
            {"image": datasets.Image(), "caption": datasets.Value("string")}
        ),
    )
    made = train(elsewhere(config, folder / "object"), data)
    assert made == folder / "object" / "model" and (made / "abc.json").is_file()
    assert curve(folder / "object") == curve(folder / "files")
    again = train(elsewhere(config, folder / "object"), data)  # finished: found by its fingerprint
    assert again == made
    with pytest.raises(Exception, match="content"):
        train(elsewhere(config, folder / "object"), data.select(range(5)))


def test_records_and_dicts_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    renamed = [{"image": row["image"], "says": row["caption"]} for row in pictures(folder)]
    forms: dict[str, tuple[Any, dict[str, str] | None]] = {
        "records": (read_records(folder), None),
        "dicts": (pictures(folder), None),
        "paths": (
            [row | {"image": str(folder / f"{n}.png")} for n, row in enumerate(pictures(folder))],
            None,
        ),
        "renamed": (renamed, {"caption": "says"}),
        "dataset": (open_dataset(folder), None),
    }
    texts = {}
    for name, (rows, columns) in forms.items():
        found = open_dataset(rows, columns)
        texts[name] = [found.row(n).record.caption for n in range(len(found))]
        pixels = [np.asarray(Image.open(_file(found.row(n).image))) for n in range(len(found))]
        assert [int(p[0, 0, 0]) for p in pixels] == [40 * n for n in range(COUNT)]
        assert len(found.fingerprint()) == 64
    assert all(value == texts["records"] for value in texts.values())


def _file(image: Path | bytes) -> Any:
    import io

    return io.BytesIO(image) if isinstance(image, bytes) else image


def test_instructions_in_columns_of_their_own(folder: Path) -> None:
    rows = [
        {"image": row["image"], "instruction": "which?", "answer": f"number {n}", "kind": "number"}
        for n, row in enumerate(pictures(folder))
    ]
    config = DataConfig(negatives=7, instructions=1, kinds={"number": 2})
    sampler = RecordSampler(open_dataset(rows), "instruct", config)
    groups = sampler.groups(0, COUNT, 0)
    pairs = []
    for number in range(COUNT):
        group = groups[number]
        assert isinstance(group, Group)
        pairs += group.pairs
    assert sorted(pairs) == [("which?", f"number {n}") for n in range(COUNT)]
    named = [{"image": r["image"], "q": "which?", "a": "one"} for r in rows]
    columns = {"instruction": "q", "answer": "a"}
    (ask,) = open_dataset(named, columns).row(0).record.instructions
    assert (ask.instruction, ask.answer, ask.kind) == ("which?", "one", "question")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"train": [], "test": []}, "a mapping of train, test; give one of its data sets"),
        (7, "this is a int; give a data set, or a list of rows"),
        (datasets.Dataset.from_list([{"a": 1}]).to_iterable_dataset(), "without streaming=True"),
    ],
)
def test_what_is_no_data_set(rows: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_dataset(rows)


def test_rows_that_cannot_be_used_are_named(folder: Path) -> None:
    wrong = [{"caption": "no picture"}, "a text", {"image": "gone.png", "caption": "x"}]
    found = open_dataset([*pictures(folder), *wrong])
    for number, sentence in enumerate(("has no 'image'", "a row is a str", "there is no image")):
        with pytest.raises(DataError, match=f"row {COUNT + number}: .*{sentence}"):
            found[COUNT + number]
    outside = Record(id="x", image="a.png", width=1, height=1)
    assert open_dataset([outside]).row(0).image == Path("a.png")


def test_two_data_sets_and_none(folder: Path) -> None:
    config = recipe(folder)
    with pytest.raises(ConfigError, match="a data set is given besides; give one"):
        train(config, pictures(folder))
    with pytest.raises(ConfigError, match=r"data\.records is missing"):
        train(elsewhere(config, folder / "x"))
    assert os.listdir(folder).count("x") == 0

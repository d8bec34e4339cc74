"""What a run leaves behind: a model that says how it was made, and checkpoints that are models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_parts import write_data
from safetensors.torch import load_file, save_file

from abc_embed import Embedder, checkpoint
from abc_embed.cli import run
from abc_embed.errors import CheckpointError, ConfigError
from abc_embed.inputs import Item
from abc_embed.train.run import train_from_config

RECIPE = """\
stage = "{stage}"
out = "{root}/{name}"
[model]
base = "{base}"
{more}
device = "cpu"
[data]
records = "{root}/data"
{data}
[adapter]
rank = 4
alpha = 8
dropout = {dropout}
[optim]
learning_rate = 5e-3
[train]
steps = 4
batch_size = 3
checkpoint_every = 2
"""


def recipe(root: Path, stage: str, name: str, base: Path, dropout: float = 0.0) -> Path:
    path = root / f"{name}.toml"
    plain = "head_width = 96\npixels = [784, 3136]" if stage == "pretrain" else ""
    data = "negatives = 1" if stage == "pretrain" else "instructions = 2"
    values = {"stage": stage, "root": root, "name": name, "base": base, "more": plain}
    path.write_text(RECIPE.format(**values, data=data, dropout=dropout), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    file = tmp_path / "data" / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["instructions"] = [
            {"instruction": ask, "answer": f"{ask} {number}", "kind": "place"}
            for ask in ("left", "right")
        ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data"


def vectors(name: Path, data: Path) -> torch.Tensor:
    image = data / "3.png"
    items = [Item(image=image), Item(image=image, instruction="left"), Item("caption 3")]
    return torch.from_numpy(Embedder.from_pretrained(name, device="cpu").embed(items))


def test_checkpoints_are_models_and_models_say_how_they_were_made(
    data: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_from_config(recipe(tmp_path, "pretrain", "one", golden / "base"))
    train_from_config(recipe(tmp_path, "instruct", "two", tmp_path / "one"))
    for name in ("one", "two"):
        folder = tmp_path / name / "checkpoints"
        last, first = (vectors(folder / f"step-{n:08}", data) for n in (4, 2))
        final = vectors(tmp_path / name, data)  # a run is the model in it
        assert torch.allclose(last, final, atol=1e-6)
        assert (first - final).abs().max() > 1e-4
    asked = [vectors(tmp_path / name, data)[1] for name in ("one", "two")]
    assert (asked[0] - asked[1]).abs().max() > 1e-4  # stage 2 has its adapter there

    assert run(["train", "export-checkpoint", f"{tmp_path}/two", "--out", f"{tmp_path}/three"]) == 0
    assert "step-00000004 is in" in capsys.readouterr().out
    assert torch.equal(vectors(tmp_path / "three", data), vectors(tmp_path / "two", data))
    assert run(["train", "export-checkpoint", str(data), "--out", "x"]) == 2

    description = json.loads((tmp_path / "two" / "model" / "abc.json").read_text())
    first, second = description["training"]
    assert (first["stage"], first["steps"], first["parent"]) == ("pretrain", 4, "base")
    assert (second["stage"], second["steps"], second["parent"]) == ("instruct", 4, "one")
    assert first["records_fingerprint"] == second["records_fingerprint"] != ""
    assert second["recipe"]["adapter"]["rank"] == 4
    assert str(tmp_path) not in json.dumps(description["training"])
    card = (tmp_path / "two" / "model" / "README.md").read_text()
    assert "| then trained | stage 1, 4 steps on data (" in card
    assert "| then trained | stage 2, 4 steps on data (" in card and ", from one (" in card
    exported = json.loads((tmp_path / "three" / "abc.json").read_text())
    assert exported["training"] == description["training"]
    half = checkpoint.load(str(tmp_path / "two" / "checkpoints" / "step-00000002"))[0]
    assert [entry["steps"] for entry in half.provenance] == [4, 2]
    # How it was made is no part of what it is: caches and records of the same weights stay.
    embedder = Embedder.from_pretrained(tmp_path / "two", device="cpu")
    before = embedder.fingerprint
    embedder.model.provenance, embedder._fingerprint = [], None
    assert embedder.fingerprint == before


def test_a_checkpoint_of_another_base_is_refused(data: Path, golden: Path, tmp_path: Path) -> None:
    train_from_config(recipe(tmp_path, "pretrain", "one", golden / "base"))
    train_from_config(recipe(tmp_path, "instruct", "two", tmp_path / "one"))
    file = tmp_path / "one" / "model" / "head.safetensors"
    tensors = load_file(file)
    save_file({name: value * 1.01 for name, value in tensors.items()}, file)
    with pytest.raises(
        CheckpointError, match=r"has other content than when .* was trained from it"
    ):
        checkpoint.load(str(tmp_path / "two" / "checkpoints" / "step-00000004"))


def test_stage_2_goes_on_from_stage_2(data: Path, golden: Path, tmp_path: Path) -> None:
    train_from_config(recipe(tmp_path, "pretrain", "one", golden / "base"))
    train_from_config(recipe(tmp_path, "instruct", "two", tmp_path / "one"))
    again = recipe(tmp_path, "instruct", "three", tmp_path / "two", dropout=0.1)
    train_from_config(again, ["optim.learning_rate=1e-9"])  # so that nothing moves
    two, three = (checkpoint.load(str(tmp_path / n))[0].state_dict() for n in ("two", "three"))
    assert two.keys() == three.keys()
    for name, value in two.items():
        assert torch.allclose(value, three[name], atol=1e-6), name
    assert any("lora_B" in name and value.abs().max() > 1e-3 for name, value in two.items())
    last = tmp_path / "three" / "checkpoints" / "step-00000004"
    assert torch.allclose(vectors(last, data), vectors(tmp_path / "three", data), atol=1e-6)
    with pytest.raises(ConfigError, match=r"adapter\.rank is 8, and the stage-2 adapter of .* 4"):
        train_from_config(again, [f"out={tmp_path}/four", "adapter.rank=8"])


def test_a_temperature_that_was_not_trained(
    data: Path, golden: Path, tmp_path: Path, request: Any
) -> None:
    path = recipe(tmp_path, "pretrain", "one", golden / "base")
    train_from_config(path, ["temperature.learn=false", "temperature.start=0.05"])
    loaded, _ = checkpoint.load(str(tmp_path / "one" / "checkpoints" / "step-00000004"))
    assert loaded.temperature.value == pytest.approx(0.05)

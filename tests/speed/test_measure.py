"""`bench speed` on random weights: every way and stage is there, and all give the same vectors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from abc_embed import Embedder, runtime
from abc_embed.bench.encoders.registry import NativeEncoder
from abc_embed.bench.records import make_record, read_record, write_record
from abc_embed.speed import costs, measure
from abc_embed.speed.shapes import random_embedder, shape_fingerprint


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return random_embedder("tiny", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def record(tiny: Embedder) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(costs.PEAK_SIDE, "cpu", 128)
        findings = measure.measure(
            tiny, images=4, instructions=2, size=(64, 48), rounds=1, against=True
        )
    yield make_record(NativeEncoder(tiny, "tiny"), findings)


def test_random_weights_are_those_of_the_seed_and_of_use(tiny: Embedder) -> None:
    again = random_embedder("tiny", torch.device("cpu"), torch.float32)
    assert again.fingerprint == tiny.fingerprint
    plain, asked = tiny.embed(["a dog", "a cat"])
    assert abs(float(plain @ asked)) < 0.9999
    assert shape_fingerprint("tiny") != shape_fingerprint("2b")


def test_weights_have_the_format_of_inference() -> None:
    half = random_embedder("tiny", torch.device("cpu"), torch.bfloat16)
    kinds = {(".lora_" in name, p.dtype) for name, p in half.model.backbone.named_parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    assert half.model.head.linear1.weight.dtype == torch.float32
    assert half.embed(["a dog"]).shape == (1, 64)


def test_every_way_of_every_workload_is_measured(record: dict[str, Any]) -> None:
    names = ["texts", "images", "mixed", "images x 2 instructions"]
    assert list(record["scores"]) == names
    asked = {"forward", "embed", "forward, adapter off", "embed, adapter off"}
    for name, row in record["scores"].items():
        plain = {"forward", "embed"} if name in names[:2] else asked
        assert set(row["ways"]) == plain | {"sentence-transformers"}
        assert all(way["items_per_s"] > 0 < way["share_of_peak"] for way in row["ways"].values())
        assert set(row["stages"]) == set(measure.STAGES) and row["stages"]["language"] > 0
        assert row["largest_difference_of_a_vector"] < 1e-5
    assert record["scores"]["texts"]["flops"]["vision"] == 0 < record["peak_flops"]
    assert record["scores"]["images"]["stages"]["vision"] > 0
    assert record["clock"] == "processor" and record["hardware"]["torch_threads"]


def test_a_record_is_kept_and_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    assert read_record(path)["scores"] == record["scores"]
    measure.draw(record, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert len(measure.rows(record)) == sum(len(r["ways"]) for r in record["scores"].values())
    assert len(measure.stage_rows(record)) == 4


def test_the_peak_of_memory_is_counted_anew() -> None:
    device = torch.device("cpu")
    runtime.reset_peak(device)
    before = runtime.peak_bytes(device)
    block = torch.ones(2**24)
    assert before == 0 or runtime.peak_bytes(device) >= before + 2**25
    del block

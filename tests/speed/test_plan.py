"""Plans: what they are made of, and what is said of them afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from abc_embed import Item, runtime
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Kind
from abc_embed.processor import Features
from abc_embed.speed import costs, plan, workloads
from abc_embed.speed.costs import Seconds
from abc_embed.speed.plan import Plan, check_job, comparison, plan_embedding, spread, tile
from abc_embed.speed.shapes import meta_model
from abc_embed.storage.json_files import atomic_write_json

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def made(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "job": "embed",
        "model": "bundled",
        "device": "cpu",
        "dtype": "float32",
        "units": 100,
        "devices": 1,
        "start_s": 2.0,
        "prepare_s": 4.0,
        "compute_s": 10.0,
        "processor_s": 16.0,
        "wall_s": 12.0,
        "memory": {"weights": 2**30},
        "layers_tried": "all",
    }
    return Plan(**(values | changes))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.PEAK_SIDE, "cpu", 128)
    monkeypatch.setattr(plan, "PROBE_S", 0.05)
    monkeypatch.setattr(plan, "TILES", 16)


def drawn() -> list[Item]:
    return [Item(image=photo) for photo in workloads.draw_photos(3, 64, 48)]


def planned(count: int = 1000, **options: Any) -> Plan:
    shape = lambda: meta_model("tiny")  # noqa: E731
    return plan_embedding(
        "tiny", drawn(), count, device=CPU, dtype=torch.float32, shape=shape, **options
    )


def test_a_plan_grows_with_the_items_and_shrinks_with_devices(quick: None) -> None:
    small, large = planned(100), planned(100_000)
    assert large.units == 1000 * small.units
    assert large.processor_s - large.start_s > 100 * (small.processor_s - small.start_s)
    assert large.layers_tried == "all" and large.memory["weights"] == small.memory["weights"]
    assert large.memory["the process itself, with its libraries"] > 2**27
    shared = planned(100_000, devices=8)
    assert shared.wall_s - shared.start_s < (large.wall_s - large.start_s) / 2


def test_a_deep_model_is_tried_with_few_layers(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WHOLE_S", 0.0)
    found = planned()
    assert found.layers_tried == "some" and found.compute_s > 0


def test_layers_that_were_not_tried_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = meta_model("7b")
    monkeypatch.setattr(plan, "WHOLE_S", 0.0)
    monkeypatch.setattr(plan, "peak_flops", lambda *_, **__: 1e12)
    monkeypatch.setattr(plan, "_made", lambda meta, depth, *_: depth)
    monkeypatch.setattr(
        plan, "_seconds_of_all", lambda d, _: Seconds(1 + 2 * d[0] + 3 * d[1], 10.0 * d[0])
    )
    seconds, tried = plan._try_layers(model, CPU, torch.float32, lambda depth: depth)  # type: ignore[arg-type,return-value]
    assert tried == "some"
    assert seconds == Seconds(processor=1 + 2 * 28 + 3 * 32, wall=280.0)


def test_a_cpu_shares_its_cores_and_a_gpu_computes_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    facts = {"job": "embed", "model": "m", "units": 1, "memory": {}, "tried": "all"}
    parts: dict[str, Any] = {"start_s": 1.0, "prepare": 8.0, "dtype": torch.float32} | facts

    def wall(device: torch.device, compute: Seconds, threads: int, devices: int = 1) -> float:
        return plan._plan(
            device=device, compute=compute, threads=threads, devices=devices, **parts
        ).wall_s

    assert wall(CPU, Seconds(16, 4), 1) == 1 + (16 + 8) / 4
    assert wall(CPU, Seconds(16, 16), 1) == 1 + 16
    assert wall(CPU, Seconds(16, 16), 0) == 1 + 16 + 8
    assert wall(GPU, Seconds(1, 1), 4) == 1 + 2  # waits for what prepares
    assert wall(GPU, Seconds(6, 6), 4, devices=3) == 1 + 2


def test_tiles_show_other_pictures_and_keep_what_is_shared() -> None:
    ids = torch.zeros(5, dtype=torch.int64)
    pair = [Features(Kind.INSTRUCTED, ids, None, (1, 2, 2), "a")] * 2
    keys = [f.image_key for f in tile(pair, 5)]
    assert keys == ["a 0", "a 0", "a 1", "a 1", "a 2"]
    assert spread(list(range(100)), 4) == [0, 25, 50, 75] and spread([1, 2], 4) == [1, 2]


def test_afterwards_one_line_says_how_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "peak_bytes", lambda device: 2**30 + 2**29)
    monkeypatch.setattr("time.process_time", lambda: 18.0)
    line = comparison(made(), "cpu", 100)
    assert "planned 16.0 s of processor time, took 18.0 (+12%)" in line
    assert "planned 1,024 MiB, took 1,536 (+50%)" in line
    assert "planned 9.0 s" in comparison(made(), "cpu", 50)  # half were left out
    monkeypatch.setattr(runtime, "peak_bytes", lambda device: 0)
    assert "MiB" not in comparison(made(), "cpu", 100)


def test_a_plan_of_another_job_or_none(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "plan.json", made().as_json())
    assert Plan.read(tmp_path / "plan.json") == made()
    check_job(made(), "embed", "bundled")
    for job, model in (("train", "bundled"), ("embed", "other")):
        with pytest.raises(UsageError, match="make one for this job"):
            check_job(made(), job, model)
    atomic_write_json(tmp_path / "none.json", {"job": "embed"})
    with pytest.raises(DataError, match="is no plan"):
        Plan.read(tmp_path / "none.json")

"""Planning a run: its dry run's memory, and steps that are really computed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abc_embed.speed import costs, plan
from abc_embed.speed.plan import plan_training
from abc_embed.train.memory import CPU_RESERVE_BYTES


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_run_is_planned(
    stage: str,
    whole: bool,
    config: Any,
    golden: Path,
    pictures: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(costs.PEAK_SIDE, "cpu", 128)
    if not whole:
        monkeypatch.setattr(plan, "WHOLE_S", 0.0)
    recipe = config(stage, steps=10, chunk_size=2)
    changes: dict[str, Any] = {"base": str(golden / "base"), "device": "cpu"}
    if stage == "pretrain":
        changes |= {"pixels": (784, 3136), "head_width": 96}
    else:
        base = tmp_path / "base"
        shutil.copytree(golden / "base", base)
        (base / "abc.json").write_text('{"head_width": 96}')
        changes["base"] = str(base)
    recipe = replace(recipe, model=replace(recipe.model, **changes))
    found = plan_training(recipe, sampler=pictures(stage))
    longer = plan_training(
        replace(recipe, train=replace(recipe.train, steps=1000)), sampler=pictures(stage)
    )
    assert (found.job, found.units, longer.units) == ("train", 10, 1000)
    assert found.layers_tried == ("all" if whole else "some")
    assert longer.compute_s > 20 * found.compute_s > 0
    assert found.wall_s == pytest.approx(found.start_s + found.prepare_s + found.compute_s)
    assert found.memory["reserve"] >= CPU_RESERVE_BYTES
    assert found.memory["process"] > 2**27

"""Twenty steps of each stage, against what they gave when the curve was written down.

It catches what no other test names: a change in data order, initial weights, schedule, dropout or
arithmetic. Where the change is meant, write the curve anew, and say why in the changelog:

    ABC_WRITE_CURVE=1 python -m pytest tests/train/test_golden_curve.py

Tolerance: 2e-3 relative, for the loss, the norm of the gradients and τ of every step. Another
machine rounds otherwise, and twenty steps of AdamW magnify that. A change of substance is far
larger: another seed moves the norm of a gradient by more than ten times that, and a test says so.
"""

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from process_parts import Uneven, small_config, train_run

from abc_embed.train.metrics_logger import read_metrics

CURVES = Path(__file__).parent / "golden_curve.json"
WATCHED = ("loss", "grad_norm", "tau")
TOLERANCE = 2e-3


def run(sampler: Uneven, out: Path, **train: Any) -> list[list[float]]:
    config = small_config(sampler.stage, steps=20, checkpoint_every=20, chunk_size=3, **train)
    config = replace(config, optim=replace(config.optim, warmup_share=0.2))
    with suppress(KeyboardInterrupt):
        train_run(config, sampler, out)
    return [[row[name] for name in WATCHED] for row in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_twenty_steps_are_those_of_the_golden_curve(stage: str, tmp_path: Path) -> None:
    found = run(Uneven(stage), tmp_path, dropout=0.1)
    stored = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    if os.environ.get("ABC_WRITE_CURVE"):
        stored |= {"columns": list(WATCHED), stage: [[round(v, 6) for v in row] for row in found]}
        lines = [f" {json.dumps(key)}: {_rows(stored[key])}" for key in sorted(stored)]
        CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert len(found) == len(stored[stage]) == 20
    for step, (row, wanted) in enumerate(zip(found, stored[stage], strict=True), 1):
        assert row == pytest.approx(wanted, rel=TOLERANCE), f"step {step}"
    assert found[-1][0] < 0.8 * found[0][0]  # and it learns


def _rows(values: list[Any]) -> str:
    if not isinstance(values[0], list):
        return json.dumps(values)
    return "[\n  " + ",\n  ".join(json.dumps(row) for row in values) + "\n ]"


def test_the_curve_tells_another_seed_apart(tmp_path: Path) -> None:
    found = run(Uneven("instruct", stop_before=3), tmp_path, dropout=0.1, seed=1)
    wanted = json.loads(CURVES.read_text())["instruct"][: len(found)]
    distances = [abs(row[1] / other[1] - 1) for row, other in zip(found, wanted, strict=True)]
    assert len(found) == 3 and max(distances) > 10 * TOLERANCE

"""A small part of `make fuzz`, the same cases each time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest
import run
from fuzz_kills import fuzz_disks, fuzz_kills
from fuzz_models import fuzz_models
from fuzz_pictures import fuzz_pictures, pictures
from fuzz_records import fuzz_records
from fuzzing import Report

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def assert_no_fault(report: Report, cases: int) -> None:
    assert report.faults == []
    assert report.cases >= cases
    assert report.read + sum(report.refused.values()) == report.cases


def test_pictures() -> None:
    assert len(pictures()) >= 60
    report = fuzz_pictures(150, seed=1)
    assert_no_fault(report, 150)
    assert report.refused


def test_record_sets(tmp_path: Path) -> None:
    assert_no_fault(fuzz_records(40, 1, tmp_path), 40)


def test_model_folders(tmp_path: Path) -> None:
    report = fuzz_models(20, 1, tmp_path)
    assert_no_fault(report, 20)
    assert report.refused["CheckpointError"] > 3


@needs_fork
def test_kills_and_full_disks(tmp_path: Path) -> None:
    for name, fuzz, count in (("kills", fuzz_kills, 5), ("disks", fuzz_disks, 3)):
        (tmp_path / name).mkdir()
        assert_no_fault(fuzz(count, 1, tmp_path / name), count)


def test_a_fault_is_seen() -> None:
    report = Report("faults")
    report.run("case", lambda: 1 / 0)
    assert report.faults == ["case: ZeroDivisionError: division by zero"]


def test_memory_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([100.0, 100.0, 150.0, 150.0, 1200.0, 1200.0, 1200.0])
    monkeypatch.setattr(fuzzing, "peak_mb", lambda: next(used))
    report = Report("memory")
    for name in ("little", "much", "nothing more"):
        report.run(name, lambda: None)
    assert report.faults == ["much: memory rose by 1100 MB"]


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """What is in the record is not run again; that of other code is."""
    record = tmp_path / "fuzz.json"
    done = {"name": "disks", "seed": 0, "cases": 3, "faults": []}
    words = [sys.executable, run.__file__, "--disks", "3", "--out", str(record)]
    words += [f"--{kind}=0" for kind in run.KINDS if kind != "disks"]
    run._write(record, run._hash_of_sources(), [done])
    assert subprocess.run(words, capture_output=True, check=True).stdout == b""
    run._write(record, "other code", [done | {"faults": ["old"]}])
    assert b'"read": 4' in subprocess.run(words, capture_output=True, check=True).stdout
    assert json.loads(record.read_text())["totals"]["disks"]["faults"] == 0

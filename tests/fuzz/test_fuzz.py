"""A small part of `make fuzz`, the same cases each time."""

import os
from pathlib import Path

import pytest
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

"""A job on a real Ray of this machine: begun before, a worker killed, every id once."""

import json
import random
import sys
from pathlib import Path

import pytest
from batch_parts import (
    Killer,
    batch_without_ray,
    largest_difference,
    read_vectors,
    run_with_kills,
    start_batch,
    stream_vectors,
)

from abc_embed.cli import run
from abc_embed.storage.vector_folder import VectorFolder


@pytest.mark.expects_no_network  # Ray asks the metadata address of clouds which one it is on
def test_a_job_that_died_goes_on_though_a_worker_is_killed(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "boxes", tmp_path / "vectors"
    source.symlink_to(boxes)
    batch_without_ray(str(source), out, range(20), complete=False)
    (out / ".run-dead").mkdir()  # as a killed driver leaves it
    (out / ".run-dead" / "vectors-half.parquet").write_bytes(b"half")
    killer = Killer([(20, "worker")], random.Random(0))
    options = ("--workers", "1", "--json", "--max-bad", "0")
    job = run_with_kills(lambda: start_batch(str(source), out, *options), out, killer)
    printed, problem = job.communicate()
    assert job.returncode == 0, problem
    assert killer.done == {"worker": 1, "driver": 0}
    assert killer.addresses
    assert {address.removeprefix("::ffff:") for address in killer.addresses} == {"127.0.0.1"}
    report = json.loads(printed)
    assert (report["rows"], report["done_before"], report["written"]) == (60, 20, 40)
    assert report["bad"] == 0
    assert 0 <= report["waiting_share"] < 1
    assert report["items_per_s"] > 0
    assert "Traceback" not in problem and "ray" not in problem.lower(), problem
    assert not list(out.glob(".run-*"))
    assert largest_difference(read_vectors(out), stream_vectors(str(boxes))) < 1e-5
    assert VectorFolder(out).facts["complete"] is True
    ray_was_loaded = "ray" in sys.modules
    assert run(["batch", str(source), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done_before"] == 60
    assert ("ray" in sys.modules) is ray_was_loaded  # it starts none

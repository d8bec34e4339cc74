"""A job on a real Ray of this machine: begun before, a worker killed, every id once."""

import json
import random
import subprocess
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

from abc_embed.storage.vector_folder import VectorFolder


@pytest.mark.expects_no_network  # Ray asks the metadata address of clouds which one it is on
def test_a_job_that_died_goes_on_though_a_worker_is_killed(boxes: Path, tmp_path: Path) -> None:
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
    again = [sys.executable, "-m", "abc_embed", "batch", str(source), "--out", str(out), "--json"]
    done = subprocess.run(again, capture_output=True, text=True, check=True)  # and starts no Ray
    assert json.loads(done.stdout)["done_before"] == 60

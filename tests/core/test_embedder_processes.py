"""A model in other processes: copied, pickled, spawned, forked; and on other devices."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import golden_parts
import numpy as np
import pytest
import torch
from golden_parts import small

from abc_embed import Embedder
from abc_embed.errors import DeviceError


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(*golden_parts.shared())


def test_it_is_copied_pickled_and_described(model: Embedder) -> None:
    items = ["a dog", small(), small("left?")]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu")):
        assert np.array_equal(other.embed(items), model.embed(items))
        assert other.fingerprint == model.fingerprint
    assert repr(model).startswith("Embedder(base=")
    assert f"{model.dim} wide, float32 on cpu" in repr(model)
    with pytest.raises(DeviceError):
        model.to("cuda:99")


FORKED = """
import os, sys, torch
from abc_embed import Embedder
from abc_embed.errors import UsageError
torch.set_num_threads(2)
model = Embedder.from_pretrained(sys.argv[1], device="cpu")
model.embed(["a dog"] * 8)
def child():
    pid = os.fork()
    if pid == 0:
        try:
            print(model.embed(["a dog"] * 8).shape, flush=True)
        except UsageError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
child()
with model._lock:
    child()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_or_says_why_not(model: Embedder, tmp_path: Path) -> None:
    model.save(tmp_path / "mine")
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "mine")]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    works, refused = done.stdout.splitlines()
    assert works == f"(8, {model.dim})"
    assert "was forked from one whose model is at work" in refused


def test_half_keeps_what_must_be_precise(model: Embedder) -> None:
    half = copy.deepcopy(model)
    half.model.half()
    loaded = model.embed(["a dog"])
    assert half.model.head.linear1.weight.dtype == torch.float32
    assert {buffer.dtype for buffer in half.model.backbone.buffers()} == {torch.float32}
    assert float((half.embed(["a dog"]) * loaded).sum()) > 0.999

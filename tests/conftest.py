"""What holds for every test: no network, no user's caches, one thread, the same examples each time.

The environment is set here, before any test module imports a library that reads it, and for the
test process and its children only.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import offline_guard
import pytest

TESTS = Path(__file__).parent
_scratch = Path(tempfile.mkdtemp(prefix="abc-embed-tests-"))

# A shell starts what it puts in the background with Ctrl-C ignored; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(_scratch / "hf"),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",  # tiny models: one thread is no slower, and sums in one order
        "MKL_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "XDG_CACHE_HOME": str(_scratch / "cache"),
        "ABC_EMBED_CACHE": str(_scratch / "vectors"),
        offline_guard.LOG_VARIABLE: str(_scratch / "sockets.log"),
        "PYTHONPATH": os.pathsep.join(
            [str(TESTS / "support" / "guarded_site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
)
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "FORCE_COLOR",
):
    os.environ.pop(_name, None)
offline_guard.install()

hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


def pytest_unconfigure() -> None:
    shutil.rmtree(_scratch, ignore_errors=True)


def _blocked() -> list[str]:
    log = Path(os.environ[offline_guard.LOG_VARIABLE])
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test during which this process or a child of it reached beyond loopback."""
    before = len(_blocked())
    yield
    new = _blocked()[before:]
    if new and request.node.get_closest_marker("expects_no_network") is None:
        pytest.fail("this test wanted the network: " + "; ".join(new), pytrace=False)


@pytest.fixture(scope="session")
def golden() -> Path:
    """A small random Qwen2-VL and both adapters in the published layout, with their vectors."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def bundled_folder() -> Path:
    """The bundled model's folder; a test that needs it is skipped while there is none."""
    folder = TESTS.parent / "src" / "abc_embed" / "bundled" / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the bundled model is not there: make bundled makes it")
    return folder

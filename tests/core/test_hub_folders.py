"""A model of ours by its name on a hub: pushed, pulled, pinned; and all that can go wrong."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_parts
import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest
import yaml
from small_hub import SmallHub, serving

from abc_embed import Embedder, checkpoint, hub
from abc_embed.errors import (
    AbcError,
    CheckpointError,
    OfflineError,
    OutputError,
    UnknownModelError,
    UsageError,
)

NAME = "owner/name"
# Of the hub's client about its own HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(*golden_parts.shared())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, on a machine with a network."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def connect(small: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", small.address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", small.address + template)


@pytest.fixture
def empty_hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as small:
        connect(small, monkeypatch)
        yield small


@pytest.fixture
def full_hub(
    embedder: Embedder, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallHub]:
    embedder.save(tmp_path / "source")
    (tmp_path / "source" / "strange.py").write_text("raise SystemExit")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"pickle")
    with serving(tmp_path / "source") as small:
        connect(small, monkeypatch)
        yield small


def same(one: Embedder, other: Embedder) -> bool:
    return bool(np.array_equal(one.embed(["a dog", "a cat"]), other.embed(["a dog", "a cat"])))


def test_pushed_and_pulled_it_is_the_same_model(
    embedder: Embedder, empty_hub: SmallHub, tmp_path: Path
) -> None:
    pushed = embedder.push_to_hub(NAME, licence="apache-2.0", datasets=["owner/data"])
    assert pushed == f"{NAME}@{empty_hub.commit}"
    assert empty_hub.private is True
    assert {Path(name).suffix for name in empty_hub.files} <= {
        ".json",
        ".jinja",
        ".md",
        ".safetensors",
    }
    for name in (NAME, pushed):
        pulled = Embedder.from_pretrained(name, device="cpu")
        assert same(pulled, embedder)
        assert pulled.config["source"]["repository"] == pushed
    pulled.save(tmp_path / "mine")
    assert (
        json.loads((tmp_path / "mine" / "abc.json").read_text())["source"]["repository"] == pushed
    )


def test_a_second_push_takes_away_what_is_no_more(embedder: Embedder, empty_hub: SmallHub) -> None:
    embedder.push_to_hub(NAME)
    first = empty_hub.commit
    assert "instruct_adapter/adapter_model.safetensors" in empty_hub.files
    Embedder(*golden_parts.published(instruct=False)).push_to_hub(NAME, private=False)
    assert empty_hub.commit != first
    assert not [name for name in empty_hub.files if name.startswith("instruct_adapter")]
    assert not Embedder.from_pretrained(NAME, device="cpu").config["instruct_adapter"]


def test_the_card_is_one_that_the_hub_reads(embedder: Embedder, empty_hub: SmallHub) -> None:
    record = {
        "benchmark": "ctrlbench-B",
        "benchmark_hash": "ed25",
        "scores": {"joint": {"r1": 0.79433}},
    }
    embedder.model.source["base"] = "Qwen/Qwen2-VL-2B-Instruct@abc"
    try:
        embedder.push_to_hub(NAME, licence="apache-2.0", datasets=["owner/data"], records=[record])
    finally:
        embedder.model.source["base"] = "base"
    _, head, text = empty_hub.files["README.md"].decode().split("---\n", 2)
    facts: dict[str, Any] = yaml.safe_load(head)
    assert facts["library_name"] == "abc-embed"
    assert facts["license"] == "apache-2.0"
    assert facts["base_model"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert facts["datasets"] == ["owner/data"]
    assert {"multimodal", "sentence-transformers"} <= set(facts["tags"])
    (result,) = facts["model-index"][0]["results"]
    assert result["dataset"]["name"] == "ctrlbench-B"
    assert result["metrics"][0]["value"] == 0.7943
    for way in (
        f'Embedder.from_pretrained("{NAME}")',
        f'SentenceTransformer("{NAME}", trust_remote_code=True)',
        f"abc-embed serve --model {NAME}",
    ):
        assert way in text
    with pytest.raises(UsageError, match=r"no R@1"):
        embedder.push_to_hub(NAME, records=[{"benchmark": "x"}])


def test_only_data_is_fetched_and_only_once(full_hub: SmallHub, embedder: Embedder) -> None:
    assert same(Embedder.from_pretrained(NAME, device="cpu"), embedder)
    fetched = [name for name, _ in full_hub.asked]
    assert sorted(fetched) == sorted(set(fetched))
    assert not {"strange.py", "pytorch_model.bin", "README.md"} & set(fetched)
    full_hub.asked.clear()
    full_hub.commit = "d" * 40  # the model moves on, what was fetched does not
    again = Embedder.from_pretrained(NAME, device="cpu")
    assert again.config["source"]["repository"] != f"{NAME}@{full_hub.commit}"
    assert full_hub.asked == []


def test_a_part_that_another_program_left_is_completed(
    full_hub: SmallHub, embedder: Embedder, cache: Path
) -> None:
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / full_hub.commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(full_hub.commit)
    for name in ("abc.json", "config.json"):
        (snapshot / name).write_bytes(full_hub.files[name])
    assert same(Embedder.from_pretrained(NAME, device="cpu"), embedder)
    fetched = {name for name, _ in full_hub.asked}
    assert "model.safetensors" in fetched


def test_a_file_that_went_from_the_cache_is_fetched_again(
    full_hub: SmallHub, embedder: Embedder, cache: Path
) -> None:
    folder, _ = hub.fetch_model(NAME)
    (folder / "head.safetensors").unlink()
    full_hub.asked.clear()
    assert same(Embedder.from_pretrained(NAME, device="cpu"), embedder)
    assert {name for name, _ in full_hub.asked} <= {"head.safetensors"}


@pytest.mark.parametrize("after", [0, 20_000])
def test_cut_off_and_begun_again(
    full_hub: SmallHub, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    full_hub.break_after = after
    full_hub.ranges = False
    with pytest.raises(OfflineError, match="what has come is kept"):
        Embedder.from_pretrained(NAME, device="cpu")
    full_hub.break_after = None
    full_hub.ranges = True
    before = len(full_hub.asked)
    assert same(Embedder.from_pretrained(NAME, device="cpu"), embedder)
    again = [name for name, _ in full_hub.asked[before:]]
    if after:
        assert "abc.json" not in again, "what came whole is not asked for again"


def refused(error: type[AbcError], words: str, name: str = NAME) -> None:
    with pytest.raises(error, match=words) as caught:
        Embedder.from_pretrained(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_names_that_no_hub_has(full_hub: SmallHub) -> None:
    refused(UnknownModelError, "nor a repository", "owner/other")
    refused(UnknownModelError, "no revision 'v9'", f"{NAME}@v9")
    assert Embedder.from_pretrained(f"{NAME}@v1", device="cpu").dim > 0


def test_a_repository_of_something_else(full_hub: SmallHub) -> None:
    del full_hub.files["abc.json"]
    refused(CheckpointError, "no model of ours")
    assert "model.safetensors" not in [name for name, _ in full_hub.asked]


def test_a_wrong_token(
    full_hub: SmallHub, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_hub.token = "right"
    refused(UnknownModelError, "hf auth login")
    with pytest.raises(OutputError, match="hf auth login"):
        embedder.push_to_hub(NAME, token="wrong")
    embedder.push_to_hub(NAME, token="right")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert same(Embedder.from_pretrained(NAME, device="cpu"), embedder)


@pytest.mark.parametrize("status", [403, 500])
def test_a_push_that_is_refused(embedder: Embedder, empty_hub: SmallHub, status: int) -> None:
    empty_hub.refuse_upload = status
    with pytest.raises(OutputError, match=str(status)):
        embedder.push_to_hub(NAME)
    empty_hub.refuse_upload = None
    with pytest.raises(UsageError, match="no such licence"):
        embedder.push_to_hub(NAME, licence="no-such-licence")
    with pytest.raises(UsageError, match="owner/name"):
        embedder.push_to_hub("a name/that is none")
    assert empty_hub.files == {}


def test_a_full_disk(full_hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    refused(OutputError, "No space left on device.*HF_HOME")


def test_a_published_base_is_completed_too(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden_parts.BASE, tmp_path / "source")
    with serving(tmp_path / "source") as small:
        connect(small, monkeypatch)
        repository = cache / "models--owner--name"
        snapshot = repository / "snapshots" / small.commit
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(small.commit)
        (snapshot / "config.json").write_bytes(small.files["config.json"])
        model, _ = checkpoint.load_base(NAME)
        assert model.source == {"base": f"{NAME}@{small.commit}"}

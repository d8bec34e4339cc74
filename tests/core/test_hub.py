"""Where models come from: names, commits, and machines without a network."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_parts
import pytest
from golden_parts import BASE, INSTRUCT, PRETRAIN

from abc_embed import checkpoint, hub
from abc_embed.errors import OfflineError, UnknownModelError


def test_published_names_are_a_base_and_its_adapters() -> None:
    assert hub.resolve("TIGER-Lab/ABC-Qwen2VL-Instruct") == hub.Recipe(
        base="Qwen/Qwen2-VL-7B-Instruct",
        pretrain="TIGER-Lab/ABC-Qwen2VL-Pretrain",
        instruct="TIGER-Lab/ABC-Qwen2VL-Instruct",
    )
    assert hub.resolve("TIGER-Lab/ABC-Qwen2VL-Pretrain@v1") == hub.Recipe(
        base="Qwen/Qwen2-VL-7B-Instruct", pretrain="TIGER-Lab/ABC-Qwen2VL-Pretrain@v1"
    )
    pinned = hub.resolve("TIGER-Lab/ABC-Qwen2VL-Instruct@v1")
    assert isinstance(pinned, hub.Recipe)
    assert pinned.instruct == "TIGER-Lab/ABC-Qwen2VL-Instruct@v1"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match=r"bundled, TIGER-Lab/ABC-Qwen2VL-Instruct"):
        checkpoint.load("nosuchmodel")
    with pytest.raises(OfflineError, match="'runs/gone' is no folder on this machine"):
        checkpoint.load("runs/gone")
    with pytest.raises(UnknownModelError, match="no folder 'runs'"):
        checkpoint.load_published("runs", str(PRETRAIN))


@pytest.mark.parametrize(
    "load",
    [
        lambda: checkpoint.load("TIGER-Lab/ABC-Qwen2VL-Instruct"),
        lambda: checkpoint.load_published("Qwen/Qwen2-VL-7B-Instruct", str(PRETRAIN)),
        lambda: checkpoint.load_base("Qwen/Qwen2-VL-7B-Instruct@main"),
    ],
)
def test_without_a_network_there_is_one_clear_sentence(load: Callable[[], Any]) -> None:
    with pytest.raises(OfflineError) as caught:
        load()
    assert "cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.expects_no_network
def test_a_machine_whose_connections_fail_gives_the_same_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OfflineError, match="cannot be reached"):
        hub.locate("Qwen/Qwen2-VL-7B-Instruct", hub.BASE_FILES)


def test_what_was_fetched_is_recorded_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def fetched(repository: str, *, revision: str | None, **_: Any) -> str:
        asked.append((repository, revision))
        folder = tmp_path / repository / commit
        if not folder.exists():
            source = {"o/base": BASE, "o/pre": PRETRAIN, "o/ins": INSTRUCT}[repository]
            shutil.copytree(source, folder)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    with caplog.at_level(logging.INFO, logger="abc_embed.hub"):
        loaded = checkpoint.load_published("o/base", "o/pre@v2", "o/ins")
    assert {("o/base", None), ("o/pre", "v2"), ("o/ins", None)} <= set(asked)
    assert caplog.messages.count(f"o/base is used at commit {commit}") == 1
    checkpoint.save(*loaded, tmp_path / "mine")
    facts = json.loads((tmp_path / "mine" / "abc.json").read_text())
    assert facts["source"] == {
        "base": f"o/base@{commit}",
        "pretrain": f"o/pre@{commit}",
        "instruct": f"o/ins@{commit}",
    }


def test_what_another_program_left_of_a_model_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config alone is in the cache, and the hub does not answer."""
    folder = tmp_path / ("0" * 40)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(OfflineError, match="cannot be reached to fetch it whole"):
        hub.locate("o/base", hub.BASE_FILES)
    (folder / "model.safetensors").write_bytes(b"")
    assert hub.locate("o/base", hub.BASE_FILES)[0] == folder  # an old cache has no list of files


def test_local_folders_leave_no_path_of_this_machine_in_the_record() -> None:
    model, _ = golden_parts.base()
    assert model.source == {"base": "base"}

"""Fetching, against a small hub that breaks off, forgets ranges and spoils bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from published_sets import make_vg, noise
from small_hub import COMMIT, SmallHub, serving

from abc_embed.data import open_dataset
from abc_embed.data.published import fetch as fetching
from abc_embed.data.published.dataset import own_file, prepare
from abc_embed.data.published.fetch import fetch, plan, read_manifest
from abc_embed.data.published.verify import verify
from abc_embed.errors import DataError, OutputError, UsageError

BIG = "big.bin"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A copy of abc-vg-instruct with one more file of 3 MB and a README."""
    folder = tmp_path / "hub"
    make_vg(folder)
    (folder / "README.md").write_text("the card")
    (folder / BIG).write_bytes(noise(0, 3_000_000))
    constants = huggingface_hub.constants
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with serving(folder) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(fetching, "PAUSE_S", 0)
        yield hub


def get(out: Path, name: str = "abc-vg-instruct") -> list[str]:
    messages: list[str] = []
    fetch(plan(name, out), out, on_message=messages.append)
    return messages


def is_whole(hub: SmallHub, out: Path) -> bool:
    return all((out / name).read_bytes() == content for name, content in hub.files.items())


def test_all_of_it_pinned_and_compared(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = plan("abc-vg-instruct", out)
    assert planned.manifest.commit == COMMIT
    assert planned.missing == planned.size == sum(map(len, hub.files.values()))
    assert not out.exists(), "planning writes nothing"
    seen: list[tuple[int, int]] = []
    fetch(planned, out, on_progress=lambda done, of: seen.append((done, of)))
    assert is_whole(hub, out)
    assert seen[-1] == (planned.size, planned.size)
    assert seen == sorted(seen)
    manifest = read_manifest(out)
    assert set(manifest.checked) == set(hub.files)
    prepare(out)
    found = verify(out)
    assert found.ok
    assert found.hashes == "4 of 4 files compared"
    assert len(open_dataset(out)) == 6
    hub.asked.clear()
    get(out)
    assert (hub.asked, hub.api) == ([], 1), "nothing is asked when all is there"


def test_a_broken_line_goes_on_where_it_broke(hub: SmallHub, tmp_path: Path) -> None:
    hub.break_after = 700_000
    get(tmp_path / "out")
    assert is_whole(hub, tmp_path / "out")
    ranges = [asked for name, asked in hub.asked if name == BIG]
    assert ranges[0] is None
    assert len(ranges) == 5
    starts = [int(asked.split("=")[1][:-1]) for asked in ranges[1:] if asked]
    assert starts == sorted(set(starts))
    assert starts[0] > 0


def test_given_up_and_begun_again(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hub.break_after = 1_000_000
    hub.status = {"data/train-00000-of-00001.parquet": 503}
    with pytest.raises(DataError, match=r"could not be fetched \(503\); what has come is kept"):
        get(out)
    asked = [name for name, _ in hub.asked]
    assert asked.count("data/train-00000-of-00001.parquet") == fetching.TRIES
    assert not (out / "data/train-00000-of-00001.parquet").exists()
    before = plan("abc-vg-instruct", out)
    assert before.missing < before.size
    hub.status, hub.break_after = {}, None
    hub.asked.clear()
    get(out)
    assert is_whole(hub, out)
    assert BIG not in [name for name, _ in hub.asked], "what was whole is not fetched again"


KILLED = """
import os, signal, sys
from pathlib import Path
from abc_embed.data.published.fetch import fetch, plan
out = Path(sys.argv[1])
def on_progress(done, of):
    if done > of // 2:
        os.kill(os.getpid(), signal.SIGKILL)
fetch(plan("abc-vg-instruct", out), out, on_progress=on_progress)
"""


def test_killed_it_goes_on_inside_a_file(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    environment["TRANSFORMERS_OFFLINE"] = "0"
    command = [sys.executable, "-c", KILLED, out]
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / BIG).exists()
    hub.asked.clear()
    get(out)
    assert is_whole(hub, out)
    (asked,) = [asked for name, asked in hub.asked if name == BIG]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 1_000_000
    assert not own_file(out, "fetching").exists()


def test_a_hub_without_ranges(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = own_file(out, "fetching") / BIG
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"?" * 1000)
    hub.ranges = False
    get(out)
    assert is_whole(hub, out)


def test_a_wrong_hash_is_fetched_again_once(hub: SmallHub, tmp_path: Path) -> None:
    hub.spoil = {BIG: 1, "README.md": 1}
    messages = get(tmp_path / "one")
    assert f"{BIG} came with another hash; it is fetched again" in messages
    assert "README.md came with another hash; it is fetched again" in messages
    assert is_whole(hub, tmp_path / "one")
    hub.spoil = {BIG: 2}
    with pytest.raises(DataError, match=f"{BIG} came twice with another hash"):
        get(tmp_path / "two")
    assert not (tmp_path / "two" / BIG).exists()


def test_too_much_of_a_file(hub: SmallHub, tmp_path: Path) -> None:
    planned = plan("abc-vg-instruct", tmp_path / "out")
    hub.files[BIG] += b"more"
    with pytest.raises(DataError, match="is larger than the hub says"):
        fetch(planned, tmp_path / "out")


def test_what_is_there_already_is_only_compared(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / BIG).write_bytes(hub.files[BIG])
    (out / "README.md").write_text("the curd")
    messages = get(out)
    assert "README.md is there with another hash; it is fetched again" in messages
    assert BIG not in [name for name, _ in hub.asked]
    assert is_whole(hub, out)


def test_a_file_changed_since_is_compared_again(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    get(out)
    prepare(out)
    content = bytearray(hub.files[BIG])
    content[5] ^= 1
    (out / BIG).write_bytes(content)
    os.utime(out / BIG, ns=(1, 1))
    found = verify(out)
    assert found.files == [f"{BIG} has not been checked; go on with data fetch"]
    (out / "README.md").unlink()
    assert "README.md is not there; go on with data fetch" in verify(out).files
    get(out)
    assert is_whole(hub, out)
    assert verify(out).ok


def test_a_revision(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    get(out, "abc-vg-instruct@v1")
    assert read_manifest(out).commit == COMMIT
    with pytest.raises(DataError, match="does not give TIGER-Lab/ABC-VG-Instruct at v2"):
        plan("abc-vg-instruct@v2", tmp_path / "other")
    with pytest.raises(OutputError, match=f"is for abc-vg-instruct@{COMMIT}; give another folder"):
        plan("abc-pretrain", out)
    with pytest.raises(OutputError, match="give another folder"):
        plan("abc-vg-instruct@deadbeef", out)


def test_the_disk_is_looked_at_first(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"needs 3 MB with the index, and 1 MB are free"):
        get(tmp_path / "out")
    assert hub.asked == []
    assert not (tmp_path / "out").exists()


def test_names_that_lead_out_are_refused(hub: SmallHub, tmp_path: Path) -> None:
    hub.files["../evil"] = b"x"
    with pytest.raises(DataError, match="cannot be used as the hub lists it"):
        plan("abc-vg-instruct", tmp_path / "out")


def test_no_hub_and_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be reached .* copy the files"):
        plan("abc-vg-instruct", tmp_path)
    with pytest.raises(UsageError, match="the sources are abc-pretrain, abc-vg-instruct"):
        plan("coco", tmp_path)


def test_a_damaged_manifest(hub: SmallHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    get(out)
    manifest = own_file(out, "source.json")
    assert json.loads(manifest.read_text())["commit"] == COMMIT
    manifest.write_text("{")
    with pytest.raises(DataError, match="delete it and fetch again"):
        plan("abc-vg-instruct", out)


def test_hashes_are_those_of_git_and_lfs(hub: SmallHub, tmp_path: Path) -> None:
    manifest = plan("abc-vg-instruct", tmp_path).manifest
    files = {file.name: file for file in manifest.files}
    assert files[BIG].sha256 == hashlib.sha256(hub.files[BIG]).hexdigest()
    assert files["README.md"].sha256 is None
    assert files["README.md"].git_sha1 == hashlib.sha1(b"blob 8\0the card").hexdigest()

"""Images out of tar parts: the bytes that tarfile gives, in any layout, and no damage missed."""

import gzip
import io
import os
import pickle
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_sets import link, noise, split, tar_bytes
from tar_layouts import (
    FILES,
    indexed,
    members_of_gzip,
    nine_archives,
    numbered,
    one_stream,
    plain,
)

from abc_embed.data.published import archives, tar_index
from abc_embed.data.published.archives import LEAST_SPACING, find_archives
from abc_embed.data.published.tar_images import TarImages
from abc_embed.data.published.tar_index import build_index
from abc_embed.errors import AbcError, DataError, MissingExtraError, OutputError, UsageError

LAYOUTS = [one_stream, nine_archives, numbered, plain, members_of_gzip]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_is_read_as_it_was(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    images = indexed(tmp_path)
    assert len(images) == len(FILES)
    assert {name: images.read(name) for name, _ in reversed(FILES)} == dict(FILES)
    in_order = list(images.in_order())
    assert sorted((member.name, content) for member, content in in_order) == FILES
    assert images.folders() == ["train"]
    assert "train/001.jpg" in images
    assert "001.jpg" not in images
    if layout is one_stream:
        assert images.counts()["points"] > 10
        assert [member.name for member, _ in in_order] == [name for name, _ in FILES]
    images.close()


def test_which_files_belong_together(tmp_path: Path) -> None:
    one_stream(tmp_path)
    assert [len(archive.parts) for archive in find_archives(tmp_path)] == [9]
    other = tmp_path / "other"
    other.mkdir()
    nine_archives(other)
    assert [len(archive.parts) for archive in find_archives(other)] == [1] * 9


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\\\x7f"),
                min_size=1,
                max_size=150,
            ).filter(str.isprintable),
            st.sampled_from([0, 1, 511, 512, 513, 40_000, 140_000]),
        ),
        unique_by=lambda file: file[0],
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 4),
    st.booleans(),
)
def test_like_tarfile(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, int]],
    format: int,
    parts: int,
    packed: bool,
) -> None:
    """Long names, names of all alphabets, empty files, sizes around a block."""
    folder = tmp_path_factory.mktemp("tar")
    tar = tar_bytes([(n, noise(i, s)) for i, (n, s) in enumerate(files)], format=format)
    content = gzip.compress(tar) if packed else tar
    (folder / "x.tar").write_bytes(content) if parts == 1 else split(
        content, folder, "x.tar", parts
    )
    images = indexed(folder)
    with tarfile.open(fileobj=io.BytesIO(tar)) as reference:
        expected = {m.name: reference.extractfile(m).read() for m in reference if m.isreg()}  # type: ignore[union-attr]
    assert {member.name: content for member, content in images.in_order()} == expected
    assert all(images.read(name) == content for name, content in expected.items())
    images.close()


# -- archives that mean no good --------------------------------------------------------------------


def test_links_devices_and_repeats_are_named(tmp_path: Path) -> None:
    extra = [
        link("link", "/etc/passwd"),
        link("hard", "a.jpg", tarfile.LNKTYPE),
        link("null", "", tarfile.CHRTYPE),
        link("pipe", "", tarfile.FIFOTYPE),
        link("folder", "", tarfile.DIRTYPE),
    ]
    files = [("a.jpg", b"first"), ("./b.jpg", b"b"), ("a.jpg", b"second"), ("bad\nname", b"x")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(files, extra))
    images = indexed(tmp_path)
    assert images.read("a.jpg") == b"second"
    assert images.read("b.jpg") == b"b"
    others = dict(images.left_out())
    assert others["link"] == "a link to /etc/passwd"
    assert others["hard"] == "a link to a.jpg"
    assert others["null"] == others["pipe"] == "a device, a pipe or something else"
    assert others["a.jpg"] == "the name comes again; the last one counts"
    assert others["bad\nname"] == "the name cannot be written"
    assert len(others) == 6
    with pytest.raises(DataError, match="there is no 'link'"):
        images.read("link")


def test_a_bomb_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "BOMB_FLOOR", 1_000_000)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_bytes([("zeros", bytes(5_000_000))])))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        indexed(tmp_path)


def test_a_header_that_wants_all_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 20_000_000_000
    tar = tar_bytes(FILES[:1])[:-10240] + info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(DataError, match="has a header of"):
        indexed(tmp_path)


# -- used from everywhere --------------------------------------------------------------------------


def test_pickled_threaded_forked(tmp_path: Path) -> None:
    one_stream(tmp_path)
    images = indexed(tmp_path)
    assert pickle.loads(pickle.dumps(images)).read(FILES[5][0]) == FILES[5][1]
    wrong: list[str] = []

    def read_all() -> None:
        wrong.extend(name for name, content in FILES if images.read(name) != content)
        images.close()

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if not child:
        os._exit(0 if images.read(FILES[9][0]) == FILES[9][1] else 1)
    assert images.read(FILES[8][0]) == FILES[8][1]
    assert os.waitpid(child, 0)[1] == 0


def test_plain_tars_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "indexed_gzip", None)
    plain(tmp_path)
    assert indexed(tmp_path).read(FILES[20][0]) == FILES[20][1]
    other = tmp_path / "other"
    other.mkdir()
    one_stream(other)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[data\]'"):
        indexed(other)


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_stream(tmp_path)
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr(tar_index.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutputError, match=r"the index takes about 1 MB .* 0 MB free"):
        indexed(tmp_path)


def test_the_least_spacing(tmp_path: Path) -> None:
    one_stream(tmp_path)
    with pytest.raises(UsageError, match="give at least"):
        build_index(find_archives(tmp_path), tmp_path / "i", spacing=LEAST_SPACING - 1)


def test_an_index_that_is_no_index(tmp_path: Path) -> None:
    one_stream(tmp_path)
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(AbcError, match="cannot be used"):
        TarImages(tmp_path, tmp_path / "index.sqlite")


def test_points_begin_where_they_say() -> None:
    """The index format that is written for indexed_gzip is read back the same."""
    points = [
        archives.Point(0, 0, 0, None),
        archives.Point(9, 2**40, 3, noise(1, 1 << 15)),
    ]
    written = archives.pack_index(2**41, points, LEAST_SPACING)
    assert archives.unpack_index(written) == (0, points)

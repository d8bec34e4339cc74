"""Files of vectors: whole or not there."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from abc_embed.errors import OutputError, UsageError
from abc_embed.vectors import (
    FORMATS,
    PARQUET_ROWS,
    VectorFacts,
    VectorFormat,
    Writer,
    dequantize,
    open_writer,
    quantize,
    ranges_at,
    truncate,
)

resource = pytest.importorskip("resource")  # not on Windows

VECTORS = np.random.default_rng(0).standard_normal((PARQUET_ROWS + 3, 5)).astype(np.float32)
NAMES = [f"näme {number}\n" for number in range(len(VECTORS))]


def write(path: Path, count: int) -> None:
    with open_writer(path) as writer:
        for name, vector in zip(NAMES[:count], VECTORS[:count], strict=True):
            writer.add(name, vector)
        writer.finish()


def read(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npy":
        return json.loads(path.with_suffix(".ids.json").read_text()), np.load(path)
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return [row["id"] for row in rows], np.array([row["vector"] for row in rows], np.float32)


@pytest.mark.parametrize("count", [1, 9, 10, len(VECTORS)])
@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"o.x{suffix}"
    write(path, count)
    names, vectors = read(path)
    assert names == NAMES[:count]
    assert np.array_equal(vectors, VECTORS[:count])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_broken_off_means_nothing_there(tmp_path: Path, suffix: str) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_writer(tmp_path / f"o{suffix}") as writer,
    ):
        writer.add("a", VECTORS[0])
        assert not (tmp_path / f"o{suffix}").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"o{suffix}"
    write(path, 2)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="cannot be written") as caught, full_disk(500):
        write(path, len(VECTORS))
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_vectors_never_lie_next_to_names_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames, the old vectors are gone and no new ones look finished."""
    import os

    path = tmp_path / "o.npy"
    write(path, 3)
    replaced: list[str] = []

    def replace_once(source: Path, target: Path) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target.name)
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        write(path, 5)
    assert replaced == ["o.ids.json"]
    assert not path.exists()


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    with open_writer(f"{tmp_path}/o.npy") as writer:
        writer.finish()
    assert [path.name for path in writer.files] == ["o.ids.json", "o.npy"]
    assert json.loads((tmp_path / "o.ids.json").read_text()) == []
    assert np.load(tmp_path / "o.npy").shape == (0, 0)


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.npy, \.jsonl, \.parquet"):
        open_writer(tmp_path / "o.csv")


@pytest.mark.parametrize("name", ["o.npy", "o.ids.json"])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=f"{name}' is a folder"):
        open_writer(tmp_path / "o.npy")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# -- widths and formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("width", [64, 20])
def test_formats_are_those_of_sentence_transformers(output: str, width: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((50, width)).astype(np.float32)
    vectors[:, 3] = 0.25  # a dimension without a range
    ranges = np.stack([vectors[:40].min(axis=0), vectors[:40].max(axis=0)])  # the rest is clipped
    expected = quantize_embeddings(vectors, precision=output, ranges=ranges)  # type: ignore[arg-type]
    got = quantize(vectors, output, ranges)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert (got == expected).all()
    assert output == "float32" or len(np.unique(got)) > 2


def test_a_cut_vector_has_unit_length() -> None:
    vectors = np.random.default_rng(6).standard_normal((7, 32)).astype(np.float32)
    cut = truncate(vectors, 8)
    assert cut.shape == (7, 8) and cut.dtype == np.float32
    assert np.abs(np.linalg.norm(cut, axis=1) - 1).max() <= 1e-6
    assert np.abs(cut[2] * np.linalg.norm(vectors[2, :8]) - vectors[2, :8]).max() <= 1e-6
    assert truncate(vectors, None) is not None and (truncate(vectors, 32) == vectors).all()
    assert truncate(vectors[0], 8).shape == (8,)


def test_widths_and_formats_that_cannot_be() -> None:
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(UsageError, match="give 1 to 4"):
        truncate(vectors, 5)
    for dim in (1.5, "2", True):
        with pytest.raises(UsageError, match="give a whole number"):
            truncate(vectors, dim)  # type: ignore[arg-type]
    assert truncate(vectors[:1], np.int64(2)).shape == (1, 2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="zero in its first 2"):
        truncate(vectors, 2)
    with pytest.raises(UsageError, match="needs the range of each of 4 dimensions"):
        quantize(vectors, "int8")
    with pytest.raises(UsageError, match="use one of: float32"):
        quantize(vectors, "int4")


def test_a_format_is_one_class_and_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/architecture.md says: what a full disk or Ctrl-C does is the base class's."""

    class TsvWriter(Writer):
        def _add(self, name: str, vector: np.ndarray) -> None:
            self._streams[0].write(f"{name}\t{vector[0]:.3f}\n".encode())

    monkeypatch.setitem(FORMATS, ".tsv", TsvWriter)
    with open_writer(tmp_path / "x.tsv") as writer:
        writer.add("a", np.array([0.5, 1.0], dtype=np.float32))
        assert not (tmp_path / "x.tsv").exists()
        writer.finish()
    assert (tmp_path / "x.tsv").read_text() == "a\t0.500\n"
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "y.tsv"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x.tsv"]


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
@pytest.mark.parametrize("output", ["float16", "int8", "ubinary"])
def test_files_hold_the_format_that_was_asked_for(tmp_path: Path, suffix: str, output: str) -> None:
    rows = np.random.default_rng(7).standard_normal((5, 16)).astype(np.float32)
    ranges = np.stack([rows.min(0), rows.max(0)])
    facts = VectorFacts(matryoshka=(8,), ranges=ranges_at(rows, [16, 8]))
    assert np.array_equal(facts.ranges[16], ranges)
    stored = VectorFormat(16, facts, None, output)(rows)
    path = tmp_path / f"x{suffix}"
    with open_writer(path) as writer:
        for number, vector in enumerate(stored):
            writer.add(str(number), vector)
        writer.finish()
    assert np.array_equal(read(path)[1].astype(np.float32), stored.astype(np.float32))
    if suffix == ".npy":
        assert np.load(path).dtype == stored.dtype


def test_a_format_that_cannot_be_is_refused_before_anything_is_computed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(UsageError, match="abc-embed calibrate MODEL ITEMS"):
        VectorFormat(16, VectorFacts(), None, "int8")
    with pytest.raises(UsageError, match="use one of"):
        VectorFormat(16, VectorFacts(), None, "int4")
    VectorFormat(16, VectorFacts(matryoshka=(8,)), 5, "float32")
    assert "not trained at width 5; it was at 8" in caplog.text


@pytest.mark.parametrize("output", ["int8", "uint8", "binary", "ubinary", "float16"])
def test_what_is_read_back_lies_within_a_step(output: str) -> None:
    rows = np.random.default_rng(8).standard_normal((9, 24)).astype(np.float32)
    ranges = ranges_at(rows, [24])[24]
    back = dequantize(quantize(rows, output, ranges), output, ranges)
    if output in ("binary", "ubinary"):
        assert np.array_equal(back, np.where(rows > 0, 1.0, -1.0))
    else:
        step = (ranges[1] - ranges[0]) / 255 if "int8" in output else np.full(24, 2e-3)
        assert (np.abs(back - rows) <= 0.51 * step + 1e-6).all()

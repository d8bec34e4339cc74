"""Spans and parts, bad rows and equal ids, locks, other models: all without a Ray."""

import json
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from batch_parts import batch_without_ray, draw_boxes, largest_difference, read_vectors
from batch_parts import stream_vectors as streamed
from pyarrow import parquet

from abc_embed.cli import run
from abc_embed.data.records import read_records, write_records
from abc_embed.errors import DataError, DeviceError, OutputError, UsageError
from abc_embed.scale.job import PART_ROWS, BatchJob, cut_spans, rows_of_part, run_batch
from abc_embed.scale.output import BatchOutput
from abc_embed.scale.source import key_of
from abc_embed.search import Index
from abc_embed.storage.vector_folder import VectorFolder


def job(source: Path | str, out: Path, **changes: object) -> BatchJob:
    """A job whose model is never loaded."""

    def load() -> None:
        raise AssertionError("the model was loaded")

    return BatchJob(source=str(source), out=out, load=load, **changes)  # type: ignore[arg-type]


def no_progress(done: int, total: int | None = None, status: str = "") -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("numbers", "most", "spans"),
    [
        ([], 3, []),
        ([0, 1, 2, 3], 3, [[0, 3], [3, 4]]),
        ([1, 2, 5, 9, 10, 11], 2, [[1, 3], [5, 6], [9, 11], [11, 12]]),
    ],
)
def test_spans(numbers: list[int], most: int, spans: list[list[int]]) -> None:
    assert cut_spans(np.array(numbers, dtype=np.int64), most).tolist() == spans


def test_parts_grow_with_the_job() -> None:
    counts = (1, 60, 2_000, 20_000, 10**6, 10**7, 10**9)
    sizes = [rows_of_part(count) for count in counts]
    assert sizes == [16, 16, 125, 1024, 1024, 10_000, 65_536]
    assert set(sizes) >= set(PART_ROWS)


def test_the_steps_give_what_stream_gives(boxes: Path, made: Path) -> None:
    assert largest_difference(read_vectors(made), streamed(str(boxes))) < 1e-5
    columns = next(VectorFolder(made).batches()).to_pylist()
    assert {row["fingerprint"] for row in columns} == {VectorFolder(made).facts["fingerprint"]}
    assert {row["max_pixels"] for row in columns} == {None}


def test_lance_holds_the_same(boxes: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    batch_without_ray(str(boxes), out, range(40), form="lance", complete=False)
    batch_without_ray(str(boxes), out, range(40, 60), form="lance")
    assert sorted(p.name for p in out.iterdir()) == [".lock", "batch.json", "vectors.lance"]
    # To rounding: the job in two parts has other batches.
    assert largest_difference(read_vectors(out), read_vectors(made)) < 1e-6
    with BatchOutput.open(out) as output:
        keys = np.array([key_of(f"p{n}") for n in range(61)], dtype=np.uint64)
        assert np.flatnonzero(~output.done(keys)).tolist() == [60]


def test_small_formats(boxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    batch_without_ray(str(boxes), out, range(4), output="ubinary")
    facts = VectorFolder(out).facts
    assert (facts["dim"], facts["output"]) == (32, "ubinary")
    with pytest.raises(DataError, match="ubinary"):
        VectorFolder(out).check(facts["fingerprint"], None)


def test_bad_rows_are_bounded_before_anything_is_written(tmp_path: Path) -> None:
    source, out = Path(draw_boxes(4, tmp_path / "boxes")), tmp_path / "vectors"
    with (source / "records.jsonl").open("a") as file:
        file.write('{"image": "images/000000.jpg", "width": 112, "height": 112}\n')
    wanted = r"1 of 5 rows cannot be used.*--max-bad \(0.01\).*records.jsonl:5: id is missing"
    with pytest.raises(DataError, match=wanted):
        run_batch(job(source, out), no_progress)
    assert not out.exists()


def test_equal_ids(tmp_path: Path) -> None:
    source, out = Path(draw_boxes(3, tmp_path / "boxes")), tmp_path / "vectors"
    text = (source / "records.jsonl").read_text()
    (source / "records.jsonl").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"'p1' comes twice, at .*:2 and .*:4; give each row"):
        run_batch(job(source, out), no_progress)
    assert not out.exists()


def test_one_job_at_a_time(boxes: Path, made: Path) -> None:
    with (
        BatchOutput.open(made),
        pytest.raises(OutputError, match="another job is writing"),
    ):
        run_batch(job(boxes, made), no_progress)


def test_what_is_there_and_no_output_of_batch(boxes: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="no output of batch"):
        run_batch(job(boxes, tmp_path), no_progress)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_an_output_of_another_source_or_model(boxes: Path, made: Path, tmp_path: Path) -> None:
    source = tmp_path / "fewer"
    shutil.copytree(boxes, source)
    write_records(source / "records.jsonl", list(read_records(boxes))[:50])
    with pytest.raises(DataError, match="'p50', which the source does not have"):
        run_batch(job(source, made), no_progress)
    facts = VectorFolder(made).facts
    with (
        BatchOutput.open(made) as output,
        pytest.raises(DataError, match="begun with another model"),
    ):
        output.begin({**facts, "fingerprint": "0" * 64})


def test_nothing_is_left_to_do(boxes: Path, made: Path) -> None:
    report = run_batch(job(boxes, made, model="bundled"), no_progress)
    assert (report.rows, report.done_before, report.written) == (60, 60, 0)


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 ")


def test_no_ray_answers(boxes: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DeviceError, match=f"no Ray answers at {address}"):
        run_batch(job(boxes, tmp_path / "vectors", ray=address), no_progress)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering = threading.Thread(target=answer_once, args=(server,))
        answering.start()
        with pytest.raises(DeviceError, match=f"what answers at {address} is no Ray"):
            run_batch(job(boxes, tmp_path / "vectors", ray=address), no_progress)
        answering.join()
    with pytest.raises(UsageError, match="HOST:PORT"):
        run_batch(job(boxes, tmp_path / "vectors", ray="nonsense"), no_progress)
    assert not (tmp_path / "vectors").exists()


def test_a_bound_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        job(tmp_path, tmp_path, workers=0)


def test_an_index_takes_the_folder(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "photos.index")
    assert run(["index", "build", place, str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"images": 60}
    known, table = read_vectors(made), Index.open(place).table
    for batch in table.scan(["path", "vector"]):
        kept = table.decode(batch["vector"], batch.num_rows)
        given = np.stack([known[name] for name in batch["path"].to_pylist()])
        assert np.abs(kept - given).max() < 1e-3  # float16
    other = tmp_path / "other.index"
    assert run(["index", "build", str(other), str(made), "--max-pixels", "10000"]) == 1
    assert "give the same --max-pixels" in capsys.readouterr().err


def test_mining_takes_the_folder(
    made: Path,
    boxes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("abc_embed.mining.plan.PROBE_S", 0.0)
    source = tmp_path / "boxes"
    shutil.copytree(boxes, source)
    records = (boxes / "records.jsonl").read_text().splitlines()
    told = [{**json.loads(line), "caption": f"box {n}"} for n, line in enumerate(records)]
    (source / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    words = ["mine", str(source), "--examples", "0", "--json"]
    mined = []
    for name, more in (("plain", []), ("taken", ["--vectors", str(made)])):
        out = ["--out", str(tmp_path / f"{name}.parquet"), "--work", str(tmp_path / name)]
        assert run([*words, *out, *more]) == 0
        mined.append(json.loads(capsys.readouterr().out))
    remembered = [summary["report"]["remembered"] for summary in mined]
    assert remembered == [0, 60]
    plain, taken = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "taken"))
    scores = [table["scores"].combine_chunks().flatten() for table in (plain, taken)]
    assert np.abs(scores[0].to_numpy() - scores[1].to_numpy()).max() < 1e-6  # of other batches
    assert plain.drop("scores").equals(taken.drop("scores"))

"""Rows that cannot be used: named, counted, left out the same way each time, and not too many."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from process_parts import run_processes, train_run, values

from abc_embed.data import Rejected
from abc_embed.errors import DataError, TextTooLongError, TruncatedImageError
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.train.batches import Group, load_batches
from abc_embed.train.config import DataConfig
from abc_embed.train.loop import run_stage
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.rejects import RejectLog
from abc_embed.train.sampler import RecordSampler

COUNT = 8
BAD = 5


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def images() -> list[bytes]:
    """One of them cut short."""
    made = [jpeg(i) for i in range(COUNT)]
    made[BAD] = made[BAD][:1500]
    return made


def as_records(folder: Path, texts: Sequence[str], pictures: Sequence[bytes]) -> str:
    lines = []
    for i, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        (folder / f"{i}.jpg").write_bytes(picture)
        size = {"width": 64, "height": 64}
        lines.append(json.dumps({"id": f"r{i}", "image": f"{i}.jpg", "caption": text} | size))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return f"{folder}/records.jsonl:{BAD + 1}"


def as_parquet(folder: Path, texts: Sequence[str], pictures: Sequence[bytes]) -> str:
    pytest.importorskip("pyarrow")
    arrow = import_pyarrow()
    rows = [
        {"image": {"bytes": picture, "path": None}, "text": text}
        for text, picture in zip(texts, pictures, strict=True)
    ]
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), folder / "data.parquet")
    return f"{folder}/data.parquet: row {BAD}"


def as_tar(folder: Path, texts: Sequence[str], pictures: Sequence[bytes]) -> str:
    with tarfile.open(folder / "data.tar", "w") as tar:
        for i, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
            for suffix, content in (("jpg", picture), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{i:03}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"{folder}/data.tar: sample {BAD} "


FORMS: list[Callable[..., str]] = [as_records, as_parquet, as_tar]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_is_left_out_and_named(
    form: Callable[..., str], workers: int, tiny: Any, config: Any, tmp_path: Path
) -> None:
    place = form(tmp_path, [f"caption {i}" for i in range(COUNT)], images())
    settings = config("pretrain", steps=2, batch_size=COUNT)
    settings = replace(settings, data=DataConfig(workers=workers))
    _, processor = tiny()
    sampler = RecordSampler(tmp_path, "pretrain", settings.data)
    for batch in load_batches(sampler, processor, settings, 0):
        assert len(batch.queries) == COUNT - 1 and f"caption {BAD}" not in batch.texts
        (rejected,) = batch.rejected
        assert rejected.place.startswith(place) and "cut short" in rejected.why
    strict = replace(settings, data=DataConfig(workers=workers, on_error="raise"))
    sampler = RecordSampler(tmp_path, "pretrain", strict.data)
    with pytest.raises(TruncatedImageError) as caught:
        next(load_batches(sampler, processor, strict, 0))
    assert str(caught.value).startswith(place) and "\n" not in str(caught.value)


def test_a_text_that_is_too_long_is_such_a_row(tiny: Any, config: Any, tmp_path: Path) -> None:
    texts = [f"caption {i}" for i in range(COUNT)]
    texts[BAD] = "word " * 40_000
    place = as_records(tmp_path, texts, [jpeg(i) for i in range(COUNT)])
    settings = config("pretrain", steps=1, batch_size=COUNT)
    _, processor = tiny()
    batch = next(
        load_batches(RecordSampler(tmp_path, "pretrain", settings.data), processor, settings, 0)
    )
    assert [(r.place, "shorten" in r.why) for r in batch.rejected] == [(place, True)]
    strict = replace(settings, data=DataConfig(on_error="raise"))
    with pytest.raises(TextTooLongError, match=f":{BAD + 1}: the item has"):
        next(load_batches(RecordSampler(tmp_path, "pretrain", strict.data), processor, strict, 0))


def test_a_text_that_is_too_long_is_cut_where_that_is_asked_for(
    tiny: Any, config: Any, tmp_path: Path
) -> None:
    texts = [f"caption {i}" for i in range(COUNT)]
    texts[BAD] = "word " * 40_000
    as_records(tmp_path, texts, [jpeg(i) for i in range(COUNT)])
    settings = config("pretrain", steps=1, batch_size=COUNT)
    settings = replace(settings, data=DataConfig(truncate="end"))
    _, processor = tiny()
    processor.truncate = settings.data.truncate
    sampler = RecordSampler(tmp_path, "pretrain", settings.data)
    batch = next(load_batches(sampler, processor, settings, 0))
    assert not batch.rejected and len(batch.queries) == COUNT
    assert max(features.tokens for features in batch.texts.values()) <= processor.max_tokens


def test_a_negative_that_is_too_long_costs_the_negative_alone(
    tiny: Any, config: Any, tmp_path: Path
) -> None:
    as_records(tmp_path, ["one", "two"], [jpeg(0), jpeg(1)])
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    lines[0]["negatives"] = ["short", "word " * 40_000]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = config("pretrain", steps=1, batch_size=2)
    _, processor = tiny()
    sampler = RecordSampler(tmp_path, "pretrain", settings.data)
    batch = next(load_batches(sampler, processor, settings, 0))
    assert len(batch.queries) == 2 and sorted(batch.texts) == ["one", "short", "two"]
    assert [r.why.split(":")[0] for r in batch.rejected] == ["a negative is left out"]


def curve(out: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "queries", "rejected")
    return [tuple(row[name] for name in names) for row in read_metrics(out / "metrics.jsonl")]


@dataclass
class Stopped:
    """A sampler that is interrupted before a step."""

    sampler: RecordSampler
    before: int

    def __len__(self) -> int:
        return len(self.sampler)

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group | Rejected]:
        if step == self.before:
            raise KeyboardInterrupt
        return self.sampler.groups(step, count, seed)


def test_a_resumed_run_leaves_out_the_same(
    tiny: Any, config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = as_records(tmp_path, [f"caption {i}" for i in range(COUNT)], images())
    settings = config("pretrain", steps=6, batch_size=4, checkpoint_every=2)

    def train(out: str, sampler: Any = None) -> None:
        sampler = sampler or RecordSampler(tmp_path, "pretrain", settings.data)
        run_stage(settings, sampler, *tiny(), tmp_path / out)

    train("whole")
    assert sum(place in line for line in caplog.messages) == 1  # said once, not each epoch
    with pytest.raises(KeyboardInterrupt):
        train("broken", Stopped(RecordSampler(tmp_path, "pretrain", settings.data), 3))
    train("broken")
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert sum(row[-1] for row in curve(tmp_path / "whole")) == 3  # once in each of three epochs
    texts = [(tmp_path / d / "rejects.jsonl").read_text() for d in ("whole", "broken")]
    assert texts[0] == texts[1]
    (line,) = map(json.loads, texts[0].splitlines())
    assert line["place"] == place and line["step"] in (1, 2) and "cut short" in line["why"]


def test_rows_that_are_no_records_are_left_out_from_the_beginning(
    tiny: Any, config: Any, tmp_path: Path
) -> None:
    as_records(tmp_path, [f"caption {i}" for i in range(COUNT)], [jpeg(i) for i in range(COUNT)])
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{no record\n")
    settings = config("pretrain", steps=1, batch_size=COUNT)
    sampler = RecordSampler(tmp_path, "pretrain", settings.data)
    run_stage(settings, sampler, *tiny(), tmp_path / "run")
    (line,) = map(json.loads, (tmp_path / "run" / "rejects.jsonl").read_text().splitlines())
    assert line["step"] == 0 and line["place"] == f"{tmp_path}/records.jsonl:{COUNT + 1}"
    with pytest.raises(DataError, match=rf"records\.jsonl:{COUNT + 1}: the line is not JSON"):
        RecordSampler(tmp_path, "pretrain", DataConfig(on_error="raise"))
    with pytest.raises(DataError, match=r"1 of the 9 rows .* data\.max_bad_share \(0\) lets pass"):
        RecordSampler(tmp_path, "pretrain", DataConfig(max_bad_share=0.0))


@pytest.mark.parametrize(
    ("rows", "share", "seen", "allowed"),
    [
        (8, 0.01, 8, 1),  # one is always let pass
        (8, 0.5, 2, 4),  # of all of a small set, however little was seen
        (8, 0.0, 8, 0),
        (10_000, 0.01, 20, 10),  # of the first thousand
        (10_000, 0.01, 3_000, 30),
        (10_000, 0.01, 50_000, 100),  # the second time through nothing new is seen
        (None, 0.01, 3_000, 30),
    ],
)
def test_too_many_end_the_run(
    rows: int | None, share: float, seen: int, allowed: int, tmp_path: Path
) -> None:
    log = RejectLog(tmp_path, first_step=0, max_share=share, rows=rows)
    bad = [Rejected(f"file:{i}", "broken") for i in range(allowed + 1)]
    log.add(1, seen, bad[:allowed])
    log.add(2, seen, bad[:allowed])  # seen again: not new
    with pytest.raises(DataError, match=r"max_bad_share \(.*the first is file:0: broken") as caught:
        log.add(3, seen, bad)
    assert "rejects.jsonl" in str(caught.value)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [line["place"] for line in lines] == [r.place for r in bad]
    again = RejectLog(tmp_path, first_step=2, max_share=share, rows=rows)  # as a resumed run does
    with pytest.raises(DataError):
        again.add(3, seen, bad)


def test_a_step_without_a_usable_row_says_why(tiny: Any, config: Any, tmp_path: Path) -> None:
    as_records(tmp_path, ["one"], [images()[BAD]])
    settings = config("pretrain", steps=1, batch_size=1)
    _, processor = tiny()
    feed = load_batches(RecordSampler(tmp_path, "pretrain", DataConfig()), processor, settings, 0)
    with pytest.raises(DataError, match=r"no row of step 1 can be used; the first is .*jsonl:1: "):
        next(feed)


def test_several_processes_leave_out_what_one_does(config: Any, tmp_path: Path) -> None:
    as_records(tmp_path, [f"caption {i}" for i in range(COUNT)], images())
    settings = config("pretrain", steps=2, batch_size=COUNT)
    settings = replace(settings, model=replace(settings.model, device="cpu"))
    sampler = RecordSampler(tmp_path, "pretrain", settings.data)
    values(run_processes(1, train_run, settings, sampler, tmp_path / "one"))
    values(run_processes(2, train_run, settings, sampler, tmp_path / "two"))
    texts = [(tmp_path / d / "rejects.jsonl").read_text() for d in ("one", "two")]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 1
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one[1] == pytest.approx(two[1], abs=1e-5) and one[3:] == two[3:]

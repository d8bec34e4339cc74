"""Instructions for a whole data set: from records with regions to records to train stage 2 on.

Does: choose regions, have a writer write, drop what cannot be used and say so, and write records,
rejects and a report. Does not: know who writes (instructions.py).

There is no state but the writer's own cache of replies: a run that was stopped, by whatever, is
started again from the beginning and finds there what was answered already. Next to OUT.jsonl lie

    OUT.rejects.jsonl    one line for everything that was left out, with the reason
    OUT.report.json      what was done, counted
    OUT.partial.jsonl    instead of OUT.jsonl, when the cost limit came first
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from abc_embed.data.records import Record, write_records
from abc_embed.errors import OutputError
from abc_embed.storage.files import atomic_write
from abc_embed.vlm.instructions import Ask, Writer, Written, prompt_for
from abc_embed.vlm.plan import Planned
from abc_embed.vlm.region_files import Reject
from abc_embed.vlm.regions import Choice, Similarity, choose
from abc_embed.vlm.replies import Reason, same_text

COMMON = 10
"""Prompts that came most often, in the report: a model that asks the same of every image shows."""
LEAST_PAIRS = 2
"""An image with one instruction has no other to be told from, and teaches no control."""

Map = Callable[[Callable[[Ask], Written], Iterable[Ask]], Iterable[Written]]
Counted = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is done with each record.

    `limit` ends the work after so many images with enough regions, `fraction` takes a random share
    of all, by their ids and the seed. `trim` leaves out the regions that were not chosen.
    """

    root: Path
    choice: Choice = field(default_factory=Choice)
    similarity: Similarity | None = None
    limit: int | None = None
    fraction: float = 1.0
    trim: bool = True


@dataclass(slots=True)
class Report:
    """Counts of a run; `complete` is False when the cost limit came first."""

    complete: bool = True
    images_read: int = 0
    images_written: int = 0
    regions_read: int = 0
    dropped_as_largest: int = 0
    chosen: int = 0
    written: int = 0
    tried_again: int = 0
    not_asked: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """By reason; each has its line in the rejects file."""
    distinct_prompts: int = 0
    common_prompts: list[tuple[str, int]] = field(default_factory=list)
    rejects_file: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    asking: dict[str, Any] = field(default_factory=dict)


def beside(out: Path, name: str) -> Path:
    """`runs/x.jsonl`, `rejects.jsonl` -> `runs/x.rejects.jsonl`."""
    return out.with_name(f"{out.stem}.{name}")


class Rejects:
    """The rejects file, and how many went there for each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._file: BinaryIO | None = None

    def into(self, file: BinaryIO | None) -> None:
        """Where the next ones are written; nowhere without a file."""
        self._file = file

    def __call__(self, reject: Reject) -> None:
        self.counts[str(reject.reason)] += 1
        if self._file is not None:
            row = {k: v for k, v in dataclasses.asdict(reject).items() if v != ""}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))


def asks(records: Iterable[Record], job: Job, report: Report, bad: Rejects) -> Iterator[Ask]:
    """The regions to ask about, those of one image after the other."""
    usable = 0
    for record in records:
        if job.limit is not None and usable >= job.limit:
            return
        if not _drawn(record.id, job):
            continue
        report.images_read += 1
        report.regions_read += len(record.regions)
        chosen = choose(record, job.choice, job.similarity)
        report.dropped_as_largest += len(chosen.largest)
        for number in chosen.silent:
            region = record.regions[number]
            where = f"{record.id}, region {number}"
            bad(Reject(where=where, reason=Reason.PHRASE, image=record.image, phrase=region.phrase))
        if not chosen.regions:
            detail = f"{chosen.left} left, of which no {job.choice.choose} are distinct"
            bad(Reject(where=record.id, reason=Reason.FEW, detail=detail, image=record.image))
        elif not (job.root / record.image).is_file():
            detail = "there is no such file"
            bad(Reject(where=record.id, reason=Reason.IMAGE, detail=detail, image=record.image))
        else:
            usable += 1
            report.chosen += len(chosen.regions)
            for number in chosen.regions:
                yield Ask(record, number, tuple(i for i in chosen.regions if i != number))


def _drawn(name: str, job: Job) -> bool:
    digest = hashlib.sha256(f"{job.choice.seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < job.fraction * 2**64


def run(
    records: Iterable[Record],
    out: Path,
    writer: Writer,
    job: Job,
    *,
    rejects: Rejects,
    mapped: Map = map,
    counted: Counted | None = None,
    asking: Callable[[], Mapping[str, Any]] | None = None,
) -> Report:
    """Write instructions for records into `out`, with rejects and a report next to it.

    Args:
        records: with regions; read one by one. The reader tells bad rows to `rejects`.
        out: the records file to write, in the folder that images are named from.
        writer: writes each instruction.
        job: what is chosen.
        rejects: the same that the reader of `records` was given.
        mapped: how the writer is called for each region, in order; `VlmClient.map` for many at
            once.
        counted: called with the number of regions done.
        asking: what the report says of the endpoint, taken at the end.

    Raises:
        EndpointError: the endpoint cannot be used; nothing is written, and a second run goes on.
        OutputError: a file cannot be written.
    """
    report = Report(about={**writer.about, "choice": dataclasses.asdict(job.choice)})
    partial, rejects_path = beside(out, "partial.jsonl"), beside(out, "rejects.jsonl")
    prompts: Counter[str] = Counter()
    with ExitStack() as stack:
        rejects.into(stack.enter_context(atomic_write(rejects_path)))
        waiting: deque[Ask] = deque()

        def asked() -> Iterator[Ask]:
            for ask in asks(records, job, report, rejects):
                waiting.append(ask)
                yield ask

        results = _paired(waiting, mapped(writer.write, asked()), counted)
        groups = _by_image(results)
        made = (_record(group, writer, job, report, rejects, prompts) for group in groups)
        write_records(partial, (record for record in made if record is not None))
        rejects.into(None)
    report.rejected = dict(rejects.counts.most_common())
    report.complete = not report.not_asked
    report.distinct_prompts = len(prompts)
    report.common_prompts = prompts.most_common(COMMON)
    report.rejects_file = rejects_path.name
    report.asking = dict(asking()) if asking is not None else {}
    with atomic_write(beside(out, "report.json")) as file:
        text = json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False)
        file.write((text + "\n").encode(errors="replace"))
    if report.complete:
        _rename(partial, out)
    return report


def _rename(partial: Path, out: Path) -> None:
    try:
        os.replace(partial, out)
    except OSError as problem:
        raise OutputError(f"{out} cannot be written: {problem.strerror}; choose another") from None


def _paired(
    waiting: deque[Ask], results: Iterable[Written], counted: Counted | None
) -> Iterator[tuple[Ask, Written]]:
    """Each result with its ask; they come in one order."""
    for done, written in enumerate(results, start=1):
        yield waiting.popleft(), written
        if counted is not None:
            counted(done)


def _by_image(results: Iterable[tuple[Ask, Written]]) -> Iterator[list[tuple[Ask, Written]]]:
    """The results of one image together."""
    group: list[tuple[Ask, Written]] = []
    for ask, written in results:
        group.append((ask, written))
        if len(group) == len(ask.others) + 1:
            yield group
            group = []


def _record(
    group: list[tuple[Ask, Written]],
    writer: Writer,
    job: Job,
    report: Report,
    rejects: Rejects,
    prompts: Counter[str],
) -> Record | None:
    """The record of one image with its instructions, or None with everything told."""
    missing = sum(not written.asked for _, written in group)
    report.not_asked += missing
    report.tried_again += sum(written.tries > 1 for _, written in group)
    texts = Counter(same_text(written.text) for _, written in group if written.reason is None)
    good = []
    for ask, written in group:
        if not written.asked:
            continue
        if written.reason is None and texts[same_text(written.text)] > 1:
            detail = "two regions of the image have the same prompt, so neither has one answer"
            written = replace(written, reason=Reason.REPEAT, detail=detail)
        if written.reason is not None:
            rejects(_reject(ask, written))
        else:
            good.append((ask, written))
    record = group[0][0].record
    if missing:
        return None  # a later run completes it
    if len(good) < min(LEAST_PAIRS, len(group)):
        detail = f"{len(good)} of {len(group)} prompts can be used"
        rejects(Reject(where=record.id, reason=Reason.ALONE, detail=detail, image=record.image))
        return None
    report.images_written += 1
    report.written += len(good)
    prompts.update(same_text(written.text) for _, written in good)
    return _made(record, good, writer, job)


def _reject(ask: Ask, written: Written) -> Reject:
    return Reject(
        where=f"{ask.record.id}, region {ask.region}",
        reason=written.reason or Reason.FORM,
        detail=written.detail,
        image=ask.record.image,
        phrase=ask.phrase,
        reply=written.text,
    )


def _made(record: Record, good: list[tuple[Ask, Written]], writer: Writer, job: Job) -> Record:
    instructions = [written.instruction(ask) for ask, written in good]
    regions = record.regions
    if job.trim:
        regions = tuple(regions[ask.region] for ask, _ in good)
        instructions = [replace(one, region=number) for number, one in enumerate(instructions)]
    return replace(
        record,
        regions=regions,
        instructions=tuple(instructions),
        meta={**record.meta, "instructed": {**writer.about, "seed": job.choice.seed}},
    )


def planned(records: Iterable[Record], job: Job, rejects: Rejects) -> Iterator[Planned]:
    """The first requests that a VLM would get for each region."""
    for ask in asks(records, job, Report(), rejects):
        size = (ask.record.width, ask.record.height)
        yield Planned(job.root / ask.record.image, size, prompt_for(ask))

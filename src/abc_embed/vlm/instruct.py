"""Instructions for a whole data set: from records with regions to records to train stage 2 on.

There is no state but the writer's own cache of replies: a run that was stopped, by whatever, is
started again from the beginning and finds there what was answered already. Next to OUT.jsonl lie

    OUT.rejects.jsonl    one line for everything that was left out, with the reason
    OUT.report.json      what was done, counted
    OUT.partial.jsonl    instead of OUT.jsonl, when the cost limit came first, or when what stands
                         there is more than what the run gave
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abc_embed.data.records import Record, write_records
from abc_embed.errors import DataError, OutputError
from abc_embed.storage.files import atomic_write, open_file, rename_file
from abc_embed.storage.hashing import sha256
from abc_embed.storage.json_files import atomic_write_json
from abc_embed.vlm.limits import PlannedRequest
from abc_embed.vlm.regions import RegionSettings, Similarity, choose_regions
from abc_embed.vlm.rejects import Reason, Rejects
from abc_embed.vlm.replies import same_text
from abc_embed.vlm.writers import RegionTask, Writer, WriterResult, prompt_for

MOST_COMMON = 10
"""Prompts that came most often, in the report: a model that asks the same of every image shows."""
MIN_PAIRS = 2
"""An image with one instruction has no other to be told from, and teaches no control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructSettings:
    """What is done with each record; images are named from the folder `root`.

    `limit` ends the work after so many images with enough regions, `fraction` takes a random share
    of all, by their ids and the seed. `trim` leaves out the regions that were not chosen.
    """

    root: Path
    regions: RegionSettings = field(default_factory=RegionSettings)
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


def file_beside(out: Path, name: str) -> Path:
    """`runs/x.jsonl`, `rejects.jsonl` -> `runs/x.rejects.jsonl`."""
    return out.with_name(f"{out.stem}.{name}")


def write_instructions(
    records: Iterable[Record],
    out: Path,
    writer: Writer,
    settings: InstructSettings,
    *,
    rejects: Rejects,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Write instructions for records into `out`, with rejects and a report next to it.

    Args:
        records: with regions; read one by one. Their reader puts bad rows into `rejects`.
        out: the records file to write, in the folder that images are named from.
        writer: writes each instruction.
        settings: what is chosen.
        rejects: the same that the reader of `records` was given.
        overwrite: let a file at `out` go although it holds more than what comes of this run.
        on_progress: called with the number of regions done.

    Raises:
        EndpointError: the endpoint cannot be used; nothing is written, and a second run goes on.
        DataError: nothing could be written; rejects and report say why, `out` is untouched.
        OutputError: a file cannot be written, or `out` holds more and is not to be overwritten.
    """
    about = {**writer.about, "choice": dataclasses.asdict(settings.regions)}
    report = Report(about=about, rejects_file=file_beside(out, "rejects.jsonl").name)
    partial = file_beside(out, "partial.jsonl")
    prompts: Counter[str] = Counter()

    def finished_records() -> Iterator[Record]:
        group: list[WriterResult] = []  # those of one image
        results = writer.write_all(region_tasks(records, settings, report, rejects))
        for done, result in enumerate(results, start=1):
            group.append(result)
            if len(group) == len(result.task.others) + 1:
                usable = _usable(group, report, rejects)
                if usable:
                    prompts.update(same_text(result.text) for result in usable)
                    yield _instructed(usable, writer, settings)
                group = []
            on_progress(done)

    with atomic_write(file_beside(out, "rejects.jsonl")) as rejects.file:
        write_records(partial, finished_records())
        rejects.file = None
    report.rejected = dict(rejects.counts.most_common())
    report.complete = not report.not_asked
    report.distinct_prompts = len(prompts)
    report.common_prompts = prompts.most_common(MOST_COMMON)
    report.asking = writer.report()
    report_path = file_beside(out, "report.json")
    atomic_write_json(report_path, dataclasses.asdict(report), ensure_ascii=False)
    if report.complete and not report.written:
        if overwrite and out.exists():
            rename_file(partial, out)
        else:
            partial.unlink()
        raise DataError(_why_nothing(out, report, rejects, replaced=overwrite))
    if report.complete:
        _put_in_place(partial, out, report, overwrite)
    return report


def _why_nothing(out: Path, report: Report, rejects: Rejects, *, replaced: bool) -> str:
    """The sentence of a run without a single instruction."""
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in report.rejected.items())
    example = next((rejects.examples[reason] for reason in report.rejected), "")
    return (
        f"nothing is written: of {report.images_read:,} images none has instructions that can be "
        f"used ({counts or 'nothing was left out'}{f'; the first: {example}' if example else ''}); "
        f"mend that, {report.rejects_file} names each"
        + (f"; {out} stays as it was without --overwrite" if out.exists() and not replaced else "")
    )


def _put_in_place(partial: Path, out: Path, report: Report, overwrite: bool) -> None:
    """Rename the records to `out`, unless that would lose what stands there."""
    if out.exists() and not overwrite:
        images, instructions = _count_instructions(out)
        if report.images_written < images or report.written < instructions:
            raise OutputError(
                f"{out} holds {instructions:,} instructions for {images:,} images, more than the "
                f"{report.written:,} for {report.images_written:,} of this run, which are in "
                f"{partial.name}; to replace it all the same, say --overwrite"
            )
    rename_file(partial, out)


def _count_instructions(path: Path) -> tuple[int, int]:
    """Records in a file, and their instructions; a line that is no record counts as one without."""
    records = instructions = 0
    with open_file(path) as file:
        for line in file:
            if not line.strip():
                continue
            records += 1
            try:
                instructions += len(json.loads(line)["instructions"])
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
    return records, instructions


def region_tasks(
    records: Iterable[Record], settings: InstructSettings, report: Report, rejects: Rejects
) -> Iterator[RegionTask]:
    """The regions to write about, those of one image after the other."""
    usable = 0
    for record in records:
        if settings.limit is not None and usable >= settings.limit:
            return
        if not _in_fraction(record.id, settings):
            continue
        report.images_read += 1
        report.regions_read += len(record.regions)
        chosen = choose_regions(record, settings.regions, settings.similarity)
        report.dropped_as_largest += len(chosen.largest)
        for number in chosen.wordless:
            where, phrase = f"{record.id}, region {number}", record.regions[number].phrase
            rejects.add(Reason.PHRASE, where, image=record.image, phrase=phrase)
        if not chosen.regions:
            detail = f"{chosen.candidates} left, of which no {settings.regions.choose} are distinct"
            rejects.add(Reason.FEW, record.id, detail, image=record.image)
        elif not (settings.root / record.image).is_file():
            rejects.add(Reason.IMAGE, record.id, "there is no such file", image=record.image)
        else:
            usable += 1
            report.chosen += len(chosen.regions)
            for number in chosen.regions:
                others = tuple(other for other in chosen.regions if other != number)
                yield RegionTask(record, number, others)


def _in_fraction(name: str, settings: InstructSettings) -> bool:
    first_bytes = sha256(f"{settings.regions.seed} {name}")[:16]
    return int(first_bytes, 16) < settings.fraction * 2**64


def _usable(group: list[WriterResult], report: Report, rejects: Rejects) -> list[WriterResult]:
    """The usable results of an image, none if they are too few or some are still to be asked."""
    report.tried_again += sum(result.tries > 1 for result in group)
    asked = [result for result in group if result.asked]
    texts = Counter(same_text(result.text) for result in asked if result.reason is None)
    usable = []
    for result in asked:
        if result.reason is None and texts[same_text(result.text)] > 1:
            detail = "two regions of the image have the same prompt, so neither has one answer"
            result = replace(result, reason=Reason.REPEAT, detail=detail)
        if result.reason is None:
            usable.append(result)
            continue
        task = result.task
        where, image = f"{task.record.id}, region {task.region}", task.record.image
        rejects.add(
            *(result.reason, where, result.detail),
            image=image,
            phrase=task.phrase,
            reply=result.text,
        )
    if len(asked) < len(group):  # a later run completes it
        report.not_asked += len(group) - len(asked)
        return []
    if len(usable) < min(MIN_PAIRS, len(group)):
        record = group[0].task.record
        detail = f"{len(usable)} of {len(group)} prompts can be used"
        rejects.add(Reason.ALONE, record.id, detail, image=record.image)
        return []
    report.images_written += 1
    report.written += len(usable)
    return usable


def _instructed(results: list[WriterResult], writer: Writer, settings: InstructSettings) -> Record:
    """The record of an image with its instructions."""
    record = results[0].task.record
    numbers = [result.task.region for result in results]
    regions = record.regions
    if settings.trim:
        regions = tuple(regions[number] for number in numbers)
        numbers = list(range(len(numbers)))
    pairs = zip(results, numbers, strict=True)
    return replace(
        record,
        regions=regions,
        instructions=tuple(result.instruction(number) for result, number in pairs),
        meta={**record.meta, "instructed": {**writer.about, "seed": settings.regions.seed}},
    )


def planned_requests(
    records: Iterable[Record], settings: InstructSettings, rejects: Rejects
) -> Iterator[PlannedRequest]:
    """The first requests that a VLM would get for each region."""
    for task in region_tasks(records, settings, Report(), rejects):
        size = (task.record.width, task.record.height)
        yield PlannedRequest(settings.root / task.record.image, size, prompt_for(task))

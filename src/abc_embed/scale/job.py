"""A job from beginning to end, as its driver sees it.

A job that died is given again and goes on: ids that have a vector are left out. Each row ends with
a vector or in `rejects.jsonl`, and no id has two vectors, since the driver alone commits.

Shapes: `N` rows of the source, `S` spans.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Rejected
from abc_embed.errors import AbcError, DataError, DeviceError, UsageError
from abc_embed.progress import StatusCallback
from abc_embed.scale import stages
from abc_embed.scale.cluster import connected
from abc_embed.scale.output import BatchOutput
from abc_embed.scale.source import Rows, Source, open_source, read_ids
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.storage.vector_folder import import_lancedb

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

SPAN_ROWS = 1024
"""Rows of a task that prepares; a machine that is lost has at most so many of each to do again."""
SMALL_PARTS, PART_ROWS = 16, (16, 1024, 65_536)
"""Rows of a part: a sixteenth of few rows, a thousandth of many, 1,024 between them."""
BLOCK_BYTES = 16 << 20
"""Size of a block of prepared items, of which each model has a few waiting."""
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What is embedded, with what, and where it goes."""

    source: str
    """A data set as `open_dataset` takes it, or an address of fsspec."""
    image_folder: Path | None = None
    """As `open_dataset` takes it; not for an address."""
    out: Path
    load: "Callable[[], tuple[Embedder, int | None]]"
    """Called in each worker that has a model, with `max_pixels` beside it; it is pickled."""
    model: str = ""
    """The name of the model, for people."""
    instruction: str | None = None
    dim: int | None = None
    output: str = "float32"
    format: Literal["parquet", "lance"] = "parquet"
    batch_size: int | None = None
    max_bad: float = 0.01
    """Below 1 the share of rows that may be left out, else their number."""
    ray: str | None = None
    """`HOST:PORT` of a cluster; None uses this machine alone."""
    workers: int | None = None
    """Models; None: one a GPU, or a core where there is no GPU."""
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.max_bad < 0 or (self.workers is not None and self.workers < 1):
            raise UsageError("workers is 1 or more, and the bound on bad rows 0 or more")


@dataclass(slots=True, kw_only=True)
class BatchReport:
    """How a job went."""

    rows: int = 0
    done_before: int = 0
    written: int = 0
    bad: int = 0
    seconds: float = 0.0
    """Of embedding, from the first task on; starting Ray and reading ids come before."""
    waited_s: float = 0.0
    worked_s: float = 0.0
    fingerprint: str = ""
    first_bad: list[Rejected] = field(default_factory=list)

    @property
    def items_per_s(self) -> float:
        """Vectors a second of all models together."""
        return self.written / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of their time that models waited for data."""
        total = self.waited_s + self.worked_s
        return self.waited_s / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        facts = asdict(self)
        del facts["first_bad"], facts["waited_s"], facts["worked_s"]
        return {**facts, "items_per_s": self.items_per_s, "waiting_share": self.waiting_share}


def run_batch(job: BatchJob, on_progress: StatusCallback) -> BatchReport:
    """Give every row of a source its vector; goes on where an earlier run ended.

    Raises:
        DataError: no such source, equal ids, too many bad rows, or an output of another model.
        OutputError: the output cannot be written, or another job holds it.
        DeviceError: no Ray answers.
        MissingExtraError: ray, pyarrow or lancedb is absent.
        AbcError: what loading and computing the model raise.
    """
    import_pyarrow("writing the vectors of batch", "scale")
    if job.format == "lance":
        import_lancedb()
    source = open_source(job.source, job.cache, job.image_folder)
    with BatchOutput.open(job.out) as output:
        rows = read_ids(source, lambda done, total=None: on_progress(done, total, "reading ids"))
        report = BatchReport(rows=len(source))
        _check_bad(job, report, list(rows.rejected.values()))
        missing = _missing(rows, output)
        report.done_before = len(source) - len(rows.rejected) - len(missing)
        if not len(missing) and output.is_complete(_wanted(job)):
            return report
        slots = job.workers or os.cpu_count() or 1
        with connected(job.ray, cpus=2 * slots) as ray:
            run = _Run(job, source, output, report, ray, on_progress)
            run.begin()
            output.start_rejects(rows.rejected)
            for _ in range(ROUNDS):
                if not len(missing):
                    break
                run.embed(missing)
                missing = missing[~run.seen[missing]]
        if len(missing):
            raise DeviceError(f"{len(missing)} rows were lost on the way; give the command again")
        output.finish(run.facts)
    return report


def _wanted(job: BatchJob) -> dict[str, Any]:
    """What is known of the vectors before a model is loaded."""
    asked = {"instruction": job.instruction, "output": job.output, "format": job.format}
    return {"model": job.model, **asked}


def _missing(rows: Rows, output: BatchOutput) -> NDArray[np.int64]:
    """Numbers of the rows that can be used and have no vector yet."""
    todo = ~output.done(rows.keys)
    todo[list(rows.rejected)] = False
    return np.flatnonzero(todo)


def _check_bad(job: BatchJob, report: BatchReport, rejected: list[Rejected]) -> None:
    """Count rows that cannot be used.

    Raises:
        DataError: they are too many.
    """
    report.bad += len(rejected)
    report.first_bad += rejected[: 10 - len(report.first_bad)]
    of = max(report.rows, 1)
    most = job.max_bad if job.max_bad >= 1 else int(job.max_bad * of)
    if report.bad > most or report.bad == report.rows > 0:
        first = report.first_bad[0]
        raise DataError(
            f"{report.bad:,} of {report.rows:,} rows cannot be used, more than --max-bad "
            f"({job.max_bad:g}) lets pass; the first is {first.place}: {first.why}; mend them, or "
            "raise --max-bad"
        )


class _Run:
    """The part of a job that has a Ray."""

    def __init__(
        self,
        job: BatchJob,
        source: Source,
        output: BatchOutput,
        report: BatchReport,
        ray: Any,
        on_progress: StatusCallback,
    ) -> None:
        self._job, self._source, self._output = job, source, output
        self._report, self._ray, self._on_progress = report, ray, on_progress
        self._gpus = int(ray.cluster_resources().get("GPU", 0))
        self._models = job.workers or self._gpus or os.cpu_count() or 1
        self.seen: NDArray[np.bool_] = np.zeros(len(source), dtype=np.bool_)
        """Rows that have a vector, or a reason."""

    def begin(self) -> None:
        """Ask the model what it is, where it will run; compare that with an earlier run.

        Raises:
            AbcError: the model cannot be loaded, or the output is of another one.
        """
        job, ray = self._job, self._ray
        self._on_progress(0, None, "loading the model")
        # With a GPU each, more models than GPUs would wait for ever.
        if self._gpus and self._models > self._gpus:
            raise UsageError(f"there are {self._gpus} GPUs for {self._models} workers; give fewer")
        probe = ray.remote(num_cpus=1, num_gpus=1 if self._gpus else 0)(stages.probe)
        with _errors_of_workers(ray):
            self._facts = ray.get(probe.remote(job.load, job.dim, job.output))
        self._report.fingerprint = self._facts.fingerprint
        self.facts: dict[str, Any] = {
            **_wanted(job),
            "source": job.source,
            "fingerprint": self._facts.fingerprint,
            "max_pixels": self._facts.max_pixels,
            "dim": self._facts.dim,
            "rows": len(self._source),
        }
        self._output.begin(self.facts)

    def embed(self, numbers: NDArray[np.int64]) -> None:
        """Rows -> committed parts.

        Raises:
            DataError: too many rows cannot be used, or a worker has another model.
            AbcError: what computing raises.
        """
        began = time.monotonic()
        with _errors_of_workers(self._ray):
            for report in self._reports(numbers):
                self._commit(report)
                self._report.seconds = time.monotonic() - began
                self._show()
        self._report.seconds = time.monotonic() - began

    def _reports(self, numbers: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """What became of each part, as soon as a worker has written it."""
        job, data = self._job, self._ray.data
        most = max(1, min(SPAN_ROWS, len(numbers) // (4 * self._models)))
        spans = cut_spans(numbers, most)
        work = self._ray.put(
            stages.Work(self._source, spans, self._facts, job.instruction, self._output.run_folder)
        )
        context = data.DataContext.get_current()
        context.target_max_block_size = BLOCK_BYTES
        # Unequal shares of CPUs keep Ray from joining steps into one task.
        rows = data.range(len(spans), override_num_blocks=len(spans))
        chunks = rows.map_batches(stages.prepare, fn_kwargs={"work": work}, num_cpus=1)
        vectors = chunks.map_batches(
            stages.EmbedChunks,
            fn_constructor_args=(job.load, job.dim, job.output, job.batch_size),
            compute=data.ActorPoolStrategy(size=self._models),
            num_cpus=0.9,
            num_gpus=1 if self._gpus else 0,
        )
        parts = vectors.map_batches(
            stages.write_part,
            fn_kwargs={"work": work},
            batch_size=rows_of_part(len(numbers)),
            num_cpus=0.1,
        )
        for row in parts.iter_rows():
            yield pickle.loads(row["report"])

    def _commit(self, report: dict[str, Any]) -> None:
        """Give a part its place, and write down what is left out of it."""
        job, numbers = self._job, report["numbers"]
        if report["fingerprints"] != [self._facts.fingerprint]:
            raise DataError("a machine of the cluster has another model of this name; install one")
        if self.seen[numbers].any():
            return  # done twice after a machine was lost; what is new in it comes again
        if report["file"]:
            self._output.commit(report["file"])
        self.seen[numbers] = True
        self._report.written += len(numbers)
        self._report.waited_s += report["waited_s"]
        self._report.worked_s += report["worked_s"]
        if report["rejects"]:
            self.seen[[number for number, _ in report["rejects"]]] = True
            place = self._source.dataset.place
            rejected = [Rejected(place(number), why) for number, why in report["rejects"]]
            self._output.add_rejects(rejected)
            _check_bad(job, self._report, rejected)

    def _show(self) -> None:
        report = self._report
        status = f"{report.items_per_s:.0f} a second, {report.waiting_share:.0%} waiting for data"
        done = report.done_before + report.written + report.bad
        self._on_progress(done, report.rows, status)


def rows_of_part(count: int) -> int:
    """How many rows a part has, of so many that are to be done: what a dead driver loses."""
    least, usual, most = PART_ROWS
    return min(max(count // 1000, min(max(count // SMALL_PARTS, least), usual)), most)


def cut_spans(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Ascending numbers -> `(S, 2)` spans without gaps of at most so many."""
    if not len(numbers):
        return np.zeros((0, 2), dtype=np.int64)
    starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()]
    ends = [*starts[1:], len(numbers)]
    spans = [
        (numbers[at], numbers[min(at + most, end) - 1] + 1)
        for start, end in zip(starts, ends, strict=True)
        for at in range(start, end, most)
    ]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


@contextmanager
def _errors_of_workers(ray: Any) -> Iterator[None]:
    """An error of ours that a worker raised is raised here as it is.

    Raises:
        AbcError: such an error.
        DeviceError: Ray itself failed.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        known: BaseException | None = error
        for _ in range(10):
            if known is None or isinstance(known, AbcError):
                break
            known = getattr(known, "cause", None) or known.__cause__
        if isinstance(known, AbcError):
            raise type(known)(str(known)) from None
        if known is None:
            why = str(error).strip().splitlines()[-1][:300]
            raise DeviceError(f"Ray gave up ({why}); give the command again, it goes on") from error
        raise

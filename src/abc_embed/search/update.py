"""Bring an index up to date with image files: only what is new goes through the model.

A file with the size and time of change that the index knows is not opened. Any other is hashed; its
vector is taken from the index where its content is known, under whatever path, and else made from
the very bytes that were hashed. Each write is whole, so a kill loses what came since the last one.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abc_embed.data.image_files import find_images
from abc_embed.errors import ImageError, InputError
from abc_embed.inputs import Item, Skipped
from abc_embed.search.folder import SETTLED_NS, Bad, ImageFile, error_of_file, read_files
from abc_embed.search.metadata import Captions, describe
from abc_embed.search.settings import IndexParts
from abc_embed.storage.files import is_unicode
from abc_embed.storage.vector_cache import FileStamp

if TYPE_CHECKING:
    from abc_embed.search.table import Row

SAVE_EVERY_S = 20.0
"""Between two writes while images are embedded."""
FIRST_SLICE = 32
"""Images that are embedded before it is known how long one takes."""
_LOOKED_UP = 500  # contents in one filter
_FILTERED = 5_000  # images whose headers are held while a filter is applied


@dataclass(slots=True)
class Report:
    """What an update did: numbers of images."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    found: int = 0
    """New paths whose content the index knew: moved or copied files."""
    vanished: int = 0
    left_out: int = 0
    """Images that the filter of their folder does not let in."""
    bad: list[Bad] = field(default_factory=list)

    @property
    def written(self) -> bool:
        """Whether the index is another one now."""
        return bool(self.added or self.changed or self.found or self.vanished)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the index says of a path."""

    stamp: FileStamp
    content: str
    vanished: bool


def update(
    index: IndexParts,
    sources: Sequence[Path],
    captions: Captions | None = None,
    *,
    where: str | None = None,
    batch_size: int | None = None,
    raise_errors: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Bring `index`, which is held for writing, up to date with `sources`.

    Args:
        index: with an embedder.
        sources: image files and folders; none are the folders that the index has.
        captions: columns for the images.
        where: a filter in LanceDB's language that new and changed images must pass. An index
            remembers it for each folder; "true" lifts it.
        batch_size: the most images that go through the model together.
        raise_errors: a bad image ends the work; else it is left out and named in the report.
        on_progress: called with how many images are done, of how many.

    Raises:
        ImageNotFoundError: there is no such file or folder, or no image in it.
        InputError: an image is bad and `raise_errors`.
        UsageError: LanceDB refuses the filter.
    """
    if captions is not None:
        index.table.add_columns(captions.schema)
    if where is not None:
        index.table.passing([], where)  # refused before anything is written
    folders = [Path(folder) for folder in index.settings["folders"]] if not sources else []
    folders += [source.absolute() for source in sources if not source.is_file()]
    listed = [source.absolute() for source in sources if source.is_file()]
    filters = index.settings.setdefault("filters", {})
    files = dict.fromkeys(map(str, listed), where)
    for folder in folders:
        if where is not None:
            filters[str(folder)] = where
        for path in find_images(folder, required=True):
            files.setdefault(str(path), filters.get(str(folder)))
    index.settings["folders"] = sorted({*index.settings["folders"], *map(str, folders)})
    index.save_settings()
    work = _Update(index, captions, folders, list(files), raise_errors)
    work.mark_vanished()
    work.leave_out(files)
    done = len(files) - len(work.unread)
    on_progress(done, len(files))
    try:
        for group in read_files(map(Path, work.unread), work.errors):
            for _ in work.take(group, batch_size):
                done += 1
                on_progress(done, len(files))
            group.clear()
    finally:
        work.save()  # after Ctrl-C too
    work.finish()
    on_progress(len(files), len(files))
    return work.report


class _Update:
    """One update under way: what is known, and rows that are not written yet."""

    def __init__(
        self,
        index: IndexParts,
        captions: Captions | None,
        folders: Sequence[Path],
        paths: list[str],
        raise_errors: bool,
    ) -> None:
        self.index = index
        self.report = Report()
        self.errors: dict[Path, InputError] = {}
        self._raise = raise_errors
        self._folders = folders
        self._paths = paths
        self._rows: list[Row] = []
        self._patches: list[Row] = []
        self._saved_at = time.monotonic()
        self._slice = FIRST_SLICE
        self._known = self._read_known()
        self._contents = {known.content for known in self._known.values()}
        self._columns: dict[str, dict[str, Any]] = {}
        if captions is not None:
            self._columns = captions.by_path(paths, folders)
        self.unread = [path for path in paths if self._can_be_named(path)]
        self.unread = [path for path in self.unread if not self._is_unchanged(path)]
        if captions is not None:
            self._refresh_columns(captions.schema.names)

    def _read_known(self) -> dict[str, _Known]:
        names = ("path", "size", "mtime_ns", "content", "vanished")
        known: dict[str, _Known] = {}
        for batch in self.index.table.scan(names):
            for path, size, mtime_ns, *rest in zip(
                *(batch[name].to_pylist() for name in names), strict=True
            ):
                known[path] = _Known(FileStamp(size, mtime_ns), *rest)
        return known

    def _can_be_named(self, path: str) -> bool:
        if is_unicode(path):
            return True
        sentence = f"{path!a} has a name that is no Unicode; rename the file"
        self.errors[Path(path)] = ImageError(sentence)
        return False

    def _is_unchanged(self, path: str) -> bool:
        known = self._known.get(path)
        try:
            if known is None or FileStamp.of(Path(path)) != known.stamp:
                return False
        except OSError:  # reading it says why
            return False
        self.report.unchanged += 1
        if known.vanished:  # it is back
            self._patch(path, known.stamp)
        return True

    def _refresh_columns(self, names: list[str]) -> None:
        """The columns of unchanged images that say something else by now."""
        unread = set(self.unread)
        changed = []
        for batch in self.index.table.scan(["path", *names]):
            for row in batch.to_pylist():
                new = self._columns.get(row["path"])
                if new and row["path"] not in unread and row != {"path": row["path"], **new}:
                    changed.append({"path": row["path"], **new})
        self.index.table.patch(changed)

    def mark_vanished(self) -> None:
        """Images below the folders that are no longer there."""
        here = set(self._paths)
        gone = [
            path
            for path, known in self._known.items()
            if not known.vanished and path not in here
            if any(Path(path).is_relative_to(folder) for folder in self._folders)
        ]
        self.report.vanished = len(gone)
        self.index.table.patch([{"path": path, "vanished": True} for path in gone])

    def leave_out(self, filters: Mapping[str, str | None]) -> None:
        """Of what is to be read, images that do not pass their filter, by what their headers say.

        Those without a readable header stay, so that reading them says what is wrong.
        """
        gone: set[str] = set()
        for where in {filters[path] for path in self.unread} - {None}:
            asked = [path for path in self.unread if filters[path] == where]
            for start in range(0, len(asked), _FILTERED):
                rows = [self._row_of_header(path) for path in asked[start : start + _FILTERED]]
                readable = [row for row in rows if row["width"] is not None]
                passing = self.index.table.passing(readable, str(where))
                gone.update(row["path"] for row in readable if row["path"] not in passing)
        self.unread = [path for path in self.unread if path not in gone]
        self.report.left_out = len(gone)
        stale = [path for path in gone if path in self._known and not self._known[path].vanished]
        self.index.table.patch([{"path": path, "vanished": True} for path in stale])
        self.report.vanished += len(stale)

    def _row_of_header(self, path: str) -> "Row":
        """What a filter can ask of a file that is not in the index."""
        size = None
        with suppress(OSError):
            size = FileStamp.of(Path(path)).size
        return {"path": path, "size": size, **self._columns.get(path, {}), **describe(Path(path))}

    def take(self, files: list[ImageFile], batch_size: int | None) -> Iterator[None]:
        """Write files that were read, with vectors of the index or new ones; one step a file."""
        new = list(self._without_known(files))
        yield from [None] * (len(files) - len(new))
        first: dict[str, ImageFile] = {}
        for file in new:
            first.setdefault(file.content, file)
        items = [
            Item(image=file.path if file.data is None else file.data) for file in first.values()
        ]
        results = self._stream(items, batch_size)
        twins: dict[str, list[ImageFile]] = {}
        for file in new:
            twins.setdefault(file.content, []).append(file)
        for content, result in zip(first, results, strict=True):
            for file in twins[content]:
                if isinstance(result, dict):
                    known = str(file.path) in self._known
                    self.report.changed += known
                    self.report.added += not known
                    image = file.path if file.data is None else file.data
                    self._add(file, {**result, **describe(image)})
                else:
                    self.errors[file.path] = error_of_file(file.path, result.error)
                    if self._raise:
                        raise self.errors[file.path]
                yield

    def _stream(self, items: Sequence[Item], batch_size: int | None) -> "Iterator[Row | Skipped]":
        """Vectors, and details if they are kept.

        In slices that take about as long as may be lost, since a stream reads ahead.
        """
        at = 0
        while at < len(items):
            part, started = items[at : at + self._slice], time.monotonic()
            yield from self._embed(part, batch_size)
            in_time = int(len(part) * SAVE_EVERY_S / (time.monotonic() - started + 1e-6))
            self._slice = max(FIRST_SLICE, min(4 * self._slice, in_time))
            at += len(part)

    def _embed(self, items: Sequence[Item], batch_size: int | None) -> "Iterator[Row | Skipped]":
        embedder, max_pixels = self.index.needed_embedder(), self.index.max_pixels
        if self.index.table.parts:
            from abc_embed.search.detail import stream_detailed

            detailed = stream_detailed(
                embedder, items, max_pixels=max_pixels, batch_size=batch_size
            )
            for both in detailed:
                if isinstance(both, tuple):
                    detail = both[1][:, : self.index.table.dim]
                    yield {"vector": self.index.shortened(both[0]), "detail": detail}
                else:
                    yield both
            return
        for result in embedder.stream(
            items, max_pixels=max_pixels, batch_size=batch_size, on_error="skip"
        ):
            if isinstance(result, np.ndarray):
                yield {"vector": self.index.shortened(result)}
            else:
                yield result

    def _without_known(self, files: Iterable[ImageFile]) -> Iterator[ImageFile]:
        """Those whose content the index does not know; the others get its vectors."""
        wanted = {file.content for file in files if file.content in self._contents}
        rows = self._rows_of(sorted(wanted))
        for file in files:
            known = self._known.get(str(file.path))
            if known and known.content == file.content:  # touched, or back
                self._patch(str(file.path), _stamp(file))
                self.report.unchanged += 1
            elif file.content in rows:
                self.report.found += 1
                self._add(file, rows[file.content])
            else:
                yield file

    def _rows_of(self, contents: Sequence[str]) -> "dict[str, Row]":
        """What the index has of contents, vectors included."""
        self.save()
        rows: dict[str, Row] = {}
        for start in range(0, len(contents), _LOOKED_UP):
            part = ", ".join(f"'{content}'" for content in contents[start : start + _LOOKED_UP])
            plain = ["content", "width", "height", "taken"]
            made = ["vector", "detail"] if self.index.table.parts else ["vector"]
            for batch in self.index.table.scan([*plain, *made], f"content IN ({part})"):
                found = batch.select(plain).to_pylist()
                vectors = self.index.table.decode(batch["vector"], batch.num_rows)
                for row, vector in zip(found, vectors, strict=True):
                    rows[row["content"]] = {**row, "vector": vector}
                if self.index.table.parts:
                    details = self.index.table.decode_detail(batch["detail"], batch.num_rows)
                    for row, detail in zip(found, details, strict=True):
                        rows[row["content"]]["detail"] = detail
        return rows

    def _add(self, file: ImageFile, values: "Row") -> None:
        """One more row to write."""
        path = str(file.path)
        stamp = _stamp(file)
        own = {"content": file.content, "size": stamp.size, "mtime_ns": stamp.mtime_ns}
        columns = self._columns.get(path, {})
        self._rows.append({"path": path, "vanished": False, **columns, **values, **own})
        self._contents.add(file.content)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def _patch(self, path: str, stamp: FileStamp) -> None:
        """A file with the content that the index has under this path."""
        own = {"size": stamp.size, "mtime_ns": stamp.mtime_ns, "vanished": False}
        self._patches.append({"path": path, **own, **self._columns.get(path, {})})

    def save(self) -> None:
        """Write what is not written yet."""
        rows, patches = self._rows, self._patches
        self._rows, self._patches = [], []
        if new := [row for row in rows if row["path"] not in self._known]:
            self.index.table.add(new)
        self.index.table.patch([*patches, *(row for row in rows if row["path"] in self._known)])
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """A file that can no longer be read leaves nothing under its path."""
        stale = [str(path) for path in self.errors if str(path) in self._known]
        self.index.table.patch([{"path": path, "vanished": True} for path in stale])
        self.report.bad = [Bad(path, error) for path, error in self.errors.items()]
        if self.errors and self._raise:
            raise self.report.bad[0].error


def _stamp(file: ImageFile) -> FileStamp:
    """A file that changed just now may change again unseen, so that its time is not trusted."""
    settled = time.time_ns() - file.stamp.mtime_ns > SETTLED_NS
    return file.stamp if settled else FileStamp(file.stamp.size, -1)

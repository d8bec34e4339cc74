"""webdataset: tar files in which `000.jpg`, `000.txt` and `000.json` together are one sample.

One pass over the headers finds where samples begin; no image is read. A gzipped tar is inflated for
that, and each sample from the nearest place that was remembered.

A sample's name goes up to the first dot of a member's, as webdataset has it; but where no member of
it has a plain ending (`v1.0.jpg`, `v1.0.txt`, `v1.1.jpg` …), up to the last.
"""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.columns import ALIASES, SAMPLE_KEY, ColumnDataset
from abc_embed.data.dataset import Rejected, Row
from abc_embed.data.records import Record, to_json
from abc_embed.data.tar_headers import Fault, read_headers
from abc_embed.errors import DataError
from abc_embed.inputs import IMAGE_SUFFIXES
from abc_embed.storage.plain import PlainFile
from abc_embed.storage.readers import decode_text, load_json, reader_errors

_OTHERS_NAMED = 3  # members of no sample that a note names


class TarDataset(ColumnDataset):
    """`N` samples of one or several tar files, by the files' names; 24 bytes of memory each.

    A damaged stretch of a tar is a row, which cannot be used; reading goes on after it.
    """

    form = "webdataset"

    def __init__(self, path: Path, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file that is no tar."""
        self.path, self._paths = path, list(files)
        self.columns = {field: column.lstrip(".") for field, column in columns.items()}
        self._plain: list[PlainFile] = []
        faults: dict[int, str] = {}
        self.notes: list[Rejected] = []
        spans: list[tuple[int, int, int]] = []
        for number, file in enumerate(files):
            scan = _Scan(file)
            self._plain.append(scan.plain)
            for start, end, why in scan.samples():
                if why is not None:
                    faults[len(spans)] = why
                spans.append((number, start, end))
            self.notes += scan.notes()
        self._spans: NDArray[np.int64] = np.array(spans, dtype=np.int64).reshape(-1, 3)
        """`(N, 3)`: file, first byte, byte after the last."""
        self.faults = {row: Rejected(self._place(row), why) for row, why in faults.items()}

    def __len__(self) -> int:
        return len(self._spans)

    def files(self) -> Sequence[Path]:
        return self._paths

    def _place(self, number: int) -> str:
        file, start, _ = self._spans[number]
        return f"{self._paths[file]}: sample {number} (byte {start})"

    def _row(self, number: int) -> Row:
        file, start, end = self._spans[number].tolist()
        with reader_errors("the sample", "make the tar file anew"):
            members = _read_members(self._plain[file].read_at(start, end - start))
        key = _key_of_member(next(iter(members)), list(members))  # what they have in common
        contents = {name[len(key) + 1 :].lower(): name for name in members}
        if len(contents) < len(members):
            raise DataError("two members of the sample have one name; name each its own")
        image = self._choose_image(list(contents))
        values: dict[str, Any] = {SAMPLE_KEY: key}
        unused = []
        for ending, name in contents.items():
            if ending == image:
                continue
            if _is_image(ending) or not _add_columns(values, ending, members[name]):
                unused.append(ending)
        name = contents[image]
        return self._row_of(number, values, members[name], name, unused=unused)

    def _choose_image(self, endings: Sequence[str]) -> str:
        """The ending of the member that is the image: the one that was named, else the only one,
        else the only one without a further dot, else by the order of `ALIASES`."""
        if named := self.columns.get("image"):
            wanted = named.lower()
            if wanted not in endings:
                raise DataError(f"the sample has no {wanted!r}; it has {', '.join(endings)}")
            return wanted
        images = [ending for ending in endings if _is_image(ending)]
        plain = [ending for ending in images if "." not in ending]
        for found in (images, plain, [name for name in ALIASES["image"] if name in plain][:1]):
            if len(found) == 1:
                return found[0]
        if not images:
            raise DataError("the sample has no image; leave it out, or add one")
        raise DataError(
            f"the sample has several images, {', '.join(images)}; say which: --column "
            f"image={images[0]}"
        )


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES


class _Scan:
    """One pass over the headers of a tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reader_errors(str(path), "make it anew"):
            self.plain = PlainFile(path)
        self._others: list[str] = []
        self._appended = 0
        self._count = 0

    def samples(self) -> Iterator[tuple[int, int, str | None]]:
        """First byte of each sample, byte after its last, and what is wrong where there is none.

        A file of which nothing is tar is a `DataError`.
        """
        run: list[tuple[str, int, int]] = []
        where = 0
        try:
            with self.plain.stream() as stream:
                for found in read_headers(stream):
                    if isinstance(found, Fault):
                        yield from self._cut(run)
                        run = []
                        yield from self._fault(found)
                        continue
                    info, where = found
                    if (key := _key_of(info)) is None:
                        if not info.isdir():
                            self._others.append(info.name)
                        continue
                    if run and _first_dot(run[0][0]) != key:
                        yield from self._cut(run)
                        run = []
                    run.append((info.name, info.offset, where))
        except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as problem:
            why = getattr(problem, "strerror", None) or str(problem)
            yield from self._cut(run[:-1])  # its last member may lie where nothing can be read
            yield from self._fault(Fault(where, where, f"the file cannot be read on ({why})"))
            return
        yield from self._cut(run)

    def _cut(self, run: Sequence[tuple[str, int, int]]) -> Iterator[tuple[int, int, None]]:
        """The samples of members that agree up to the first dot."""
        start = 0
        keys = [_key_of_member(name, [n for n, _, _ in run]) for name, _, _ in run]
        for stop in range(1, len(run) + 1):
            if stop == len(run) or keys[stop] != keys[start]:
                yield run[start][1], run[stop - 1][2], None
                self._count += 1
                start = stop

    def _fault(self, fault: Fault) -> Iterator[tuple[int, int, str]]:
        if fault.harmless:
            self._appended += 1
            return
        if not self._count and not fault.start:
            raise DataError(f"{self._path} is damaged or no plain tar file ({fault}); make it anew")
        to = f"; read on at byte {fault.stop:,}" if fault.stop > fault.start else ""
        yield (
            fault.start,
            fault.stop,
            f"the tar is damaged: {fault}, after {self._count:,} samples{to}; what lay there is "
            "lost, and the samples before and after it may lack members: make the tar anew",
        )

    def notes(self) -> Iterator[Rejected]:
        """What was passed over."""
        if self._others:
            names = ", ".join(map(repr, self._others[:_OTHERS_NAMED]))
            more = ", …" if len(self._others) > _OTHERS_NAMED else ""
            yield Rejected(
                str(self._path),
                f"{len(self._others):,} members are of no sample and are not read: {names}{more}",
            )
        if self._appended:
            why = f"{self._appended} further archives are appended to it, and read too"
            yield Rejected(str(self._path), why)


def _first_dot(name: str) -> str | None:
    """A member's name up to the first dot of its file; None for what belongs to no sample."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem if stem and dot and ending else None


def _key_of(info: tarfile.TarInfo) -> str | None:
    return _first_dot(info.name) if info.isfile() and not info.issparse() else None


def _key_of_member(name: str, run: Sequence[str]) -> str:
    """The key of one of some members that agree up to the first dot."""
    plain = any("." not in other[len(_first_dot(other) or "") + 1 :] for other in run)
    return str(_first_dot(name)) if plain else name.rpartition(".")[0]


def _read_members(sample: bytes) -> dict[str, bytes]:
    """The members of a sample by name; those that lie in damage are not there."""
    members: dict[str, bytes] = {}
    for found in read_headers(io.BytesIO(sample)):
        if isinstance(found, Fault):
            continue  # a row of its own says so; the sample has no end mark in any case
        info, _ = found
        if _key_of(info) is None:
            continue
        if info.name in members:
            raise DataError(f"two members of the sample are called {info.name!r}; rename one")
        members[info.name] = sample[info.offset_data : info.offset_data + info.size]
    return members


def _add_columns(values: dict[str, Any], ending: str, content: bytes) -> bool:
    """A member that is no image as columns; False for data that no record holds."""
    new: Any
    try:
        if ending == "json":
            new = load_json(content)
            if not isinstance(new, dict):
                raise DataError("holds no object")
        elif ending.endswith(".json"):
            new = {ending: load_json(content)}
        else:
            new = {ending: decode_text(content).strip()}
    except DataError as problem:
        raise DataError(f"the {ending} of the sample {problem}; mend it") from None
    except UnicodeDecodeError:
        if ending.endswith("txt"):
            raise DataError(f"the {ending} of the sample is not UTF-8; save it as UTF-8") from None
        return False
    for name, value in new.items():
        if values.setdefault(name, value) != value:
            raise DataError(f"two members of the sample say {name!r}; name one another way")
    return True


def write_tar(file: BinaryIO, rows: Sequence[tuple[Record, bytes]], first: int) -> None:
    """One plain tar of records and images, numbered from `first`; equal rows make equal bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (record, image) in enumerate(rows, start=first):
            values = {key: value for key, value in to_json(record).items() if key != "image"}
            text = json.dumps(values, ensure_ascii=False).encode()
            for suffix, content in ((Path(record.image).suffix, image), (".json", text)):
                info = tarfile.TarInfo(f"{number:08d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

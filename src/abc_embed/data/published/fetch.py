"""Published data sets from the Hugging Face hub into a folder: pinned, resumed, and compared.

Why not huggingface_hub's own download: since its version 1.x a file that was broken off is fetched
again from its first byte, and a part of the large set has some 33 GB. Addresses, headers, the HTTP
client and its errors are those of huggingface_hub; only the loop that asks for the rest is here. A
file that another tool brought into the folder is not fetched again, only compared.

Pinning follows hub.py: `name@revision` pins by hand, else the default branch is resolved to a
commit once, written into the folder's manifest, and used from then on.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abc_embed.data.published.dataset import own_file
from abc_embed.data.published.layouts import LAYOUTS
from abc_embed.data.published.tar_images import is_inside
from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.storage.files import make_folder
from abc_embed.storage.json_files import atomic_write_json, read_json

MANIFEST_FILE = "source.json"
TRIES = 5
"""How often in a row nothing may come, before a fetch is given up; what has come is kept."""
PAUSE_S = 2.0
_TIMEOUT_S = 60.0
_CHUNK = 1 << 16  # a line that breaks loses less than this
_PARTIAL_FOLDER = "fetching"
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]  # see hub.py
_INDEX_SHARE = 0.02
"""Of the size that is fetched, kept free for the index and the rows."""

OnMessage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the hub, and how to know it."""

    name: str
    size: int
    sha256: str | None
    """Of large files; of small ones the hub has only git's."""
    git_sha1: str | None

    def mismatch(self, path: Path) -> str | None:
        """What tells the file at `path` from this one, or None."""
        size = path.stat().st_size
        if size != self.size:
            return f"{size:,} bytes instead of {self.size:,}"
        begun = hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {size}\0".encode())
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: begun).hexdigest()
        return None if (self.sha256 or self.git_sha1) in (None, digest) else "another hash"


@dataclass(slots=True)
class Manifest:
    """What a folder is to hold: written before anything is fetched."""

    source: str
    """Name of the published set."""
    repository: str
    commit: str
    files: list[RemoteFile]
    checked: dict[str, int] = field(default_factory=dict)
    """Files whose hash was compared: name -> time of last change, in ns."""

    def is_checked(self, folder: Path, file: RemoteFile) -> bool:
        """Whether the file is as it was when its hash was compared."""
        path = folder / file.name
        return path.is_file() and self.checked.get(file.name) == path.stat().st_mtime_ns

    def write(self, folder: Path) -> None:
        """Into the folder, whole or not at all."""
        path = own_file(folder, MANIFEST_FILE)
        make_folder(path.parent)
        atomic_write_json(path, asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; `DataError` when there is none, or it is damaged."""
    path = own_file(folder, MANIFEST_FILE)
    mend = "delete it and fetch again"
    values = read_json(path, error=DataError, mend=mend)
    try:
        return Manifest(**{**values, "files": [RemoteFile(**file) for file in values["files"]]})
    except (TypeError, KeyError) as problem:
        raise DataError(f"{path} is no manifest; {mend}") from problem


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What a fetch will take, known before it starts."""

    manifest: Manifest
    missing: int
    """Bytes that are still to come."""
    free: int
    """Bytes of disk."""

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.manifest.files)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "repository": self.manifest.repository,
            "commit": self.manifest.commit,
            "files": [asdict(file) for file in self.manifest.files],
            "bytes": self.size,
            "missing_bytes": self.missing,
            "free_bytes": self.free,
        }


def plan(name: str, folder: Path) -> FetchPlan:
    """What `fetch` will do. Asks the hub only when the folder does not know yet.

    `name` is one of `LAYOUTS`, with or without `@revision`.

    Raises:
        UsageError: an unknown name.
        DataError: the hub cannot be reached, or does not have it.
        OutputError: the folder is for something else.
    """
    plain, _, revision = name.partition("@")
    if plain not in LAYOUTS:
        raise UsageError(f"there is no source {plain!r}; the sources are {', '.join(LAYOUTS)}")
    if own_file(folder, MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        if manifest.source != plain or (revision and not manifest.commit.startswith(revision)):
            raise OutputError(
                f"{folder} is for {manifest.source}@{manifest.commit}; give another folder for "
                f"{name}"
            )
    else:
        manifest = _ask_hub(plain, revision or None)
    missing = 0
    for file in manifest.files:
        if _size(folder / file.name) != file.size:
            missing += file.size - min(max(_size(_partial(folder, file)), 0), file.size)
    disk = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    return FetchPlan(manifest, missing, shutil.disk_usage(disk).free)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _partial(folder: Path, file: RemoteFile) -> Path:
    """Where a file lies until it is whole and right."""
    return own_file(folder, _PARTIAL_FOLDER) / file.name


def _ask_hub(name: str, revision: str | None) -> Manifest:
    repository = LAYOUTS[name].repository
    try:
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError) as problem:
        raise DataError(
            f"the hub does not give {repository} at {revision or 'its default branch'}; check the "
            "revision, or accept its terms on its page and run: hf auth login"
        ) from problem
    except (OSError, _HTTP_ERROR) as problem:
        raise DataError(
            f"the Hugging Face hub cannot be reached to ask for {repository}; connect this "
            "machine, or copy the files of the data set into a folder and index that"
        ) from problem
    files = [
        RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
        if s.rfilename != ".gitattributes"
    ]
    wrong = [f.name for f in files if not is_inside(f.name) or f.name.startswith(".")]
    if not files or not info.sha or wrong:
        raise DataError(f"{repository} cannot be used as the hub lists it; name another revision")
    return Manifest(name, repository, info.sha, files)


def fetch(
    planned: FetchPlan,
    folder: Path,
    *,
    on_message: OnMessage = lambda message: None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Fetch what is missing, and compare every file; a file that is wrong is fetched once more.

    `on_progress` gets bytes of all files together.

    Raises:
        OutputError: the disk has too little room, or cannot be written.
        DataError: the hub cannot be reached, or a file is wrong twice.
    """
    needed = planned.missing + int(planned.size * _INDEX_SHARE)
    if planned.missing and needed > planned.free:
        raise OutputError(
            f"{folder} needs {needed / 1e6:,.0f} MB with the index, and {planned.free / 1e6:,.0f} "
            "MB are free; make room, or choose another disk"
        )
    manifest = planned.manifest
    make_folder(folder)
    manifest.write(folder)
    before, total = 0, max(planned.size, 1)
    for number, file in enumerate(manifest.files, start=1):
        if not manifest.is_checked(folder, file):
            on_message(
                f"{number} of {len(manifest.files)}: {file.name} ({file.size / 1e6:,.1f} MB)"
            )

            def on_bytes(count: int, before: int = before) -> None:
                on_progress(before + count, total)

            _fetch_file(manifest, file, folder, on_message, on_bytes)
            manifest.checked[file.name] = (folder / file.name).stat().st_mtime_ns
            manifest.write(folder)
        before += file.size
        on_progress(before, total)
    shutil.rmtree(own_file(folder, _PARTIAL_FOLDER), ignore_errors=True)


def _fetch_file(
    manifest: Manifest,
    file: RemoteFile,
    folder: Path,
    on_message: OnMessage,
    on_bytes: Callable[[int], None],
) -> None:
    """Put a file into its place, right; one that is wrong is fetched once more."""
    path, partial = folder / file.name, _partial(folder, file)
    if _size(path) == file.size:
        why = file.mismatch(path)
        if why is None:
            return
        on_message(f"{file.name} is there with {why}; it is fetched again")
    url = hf_hub_url(manifest.repository, file.name, repo_type="dataset", revision=manifest.commit)
    for last in (False, True):
        try:
            make_folder(partial.parent)
            make_folder(path.parent)
            _fetch_rest(url, file, partial, on_bytes)
            why = file.mismatch(partial)
            if why is None:
                partial.replace(path)
                return
            partial.unlink()
        except OSError as problem:
            raise OutputError(
                f"{path} cannot be written: {problem.strerror or problem}; make room, or choose "
                "another folder"
            ) from problem
        if not last:
            on_message(f"{file.name} came with {why}; it is fetched again")
    raise DataError(f"{file.name} came twice with {why}; name another revision, or report it")


def _fetch_rest(url: str, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Append what is missing, however often the line breaks while something comes."""
    tries = TRIES
    while (done := max(_size(partial), 0)) < file.size or not partial.exists():
        problem: Exception | None = None
        try:
            _append(url, file, partial, done, on_bytes)
        except (_HTTP_ERROR, ConnectionError, TimeoutError) as broken:
            problem = broken
        if _size(partial) > done or _size(partial) == file.size:
            tries = TRIES
            continue
        tries -= 1
        status = getattr(getattr(problem, "response", None), "status_code", None)
        if not tries or status in (401, 403, 404):
            why = status or (type(problem).__name__ if problem else "nothing came")
            raise DataError(
                f"{file.name} could not be fetched ({why}); what has come is kept: give the same "
                "command again"
            ) from problem
        time.sleep(PAUSE_S)


def _append(
    url: str, file: RemoteFile, partial: Path, done: int, on_bytes: Callable[[int], None]
) -> None:
    """Ask for what follows `done` bytes, until the line breaks."""
    # As it is: a packed answer would have other byte numbers than the file.
    headers = {"Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    if done:
        headers["Range"] = f"bytes={done}-"
    with get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    ) as answer:
        if answer.status_code == 416:  # no such bytes: what is here is not of this file
            partial.unlink()
            return
        answer.raise_for_status()
        continues = answer.status_code == 206
        done = done if continues else 0
        with partial.open("ab" if continues else "wb") as out:
            for piece in answer.iter_bytes(_CHUNK):
                done += len(piece)
                if done > file.size:
                    raise DataError(
                        f"{file.name} is larger than the hub says; name another revision"
                    )
                out.write(piece)
                on_bytes(done)

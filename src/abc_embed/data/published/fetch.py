"""Published data sets from the Hugging Face hub into a folder.

Does: pin the commit, write down what is to come, look at the free disk, fetch file by file, going
on inside a file that was broken off, and compare size and hash of each. Does not: unpack or index.

Why not huggingface_hub's own download: since its version 1.x a file that was broken off is fetched
again from its first byte, and a part of the large set has some 33 GB. Addresses, headers, the HTTP
client and its errors are those of huggingface_hub; only the loop that asks for the rest is here. A
file that another tool brought into the folder is not fetched again, only compared.

Pinning follows hub.py: `name@revision` pins by hand, else the default branch is resolved to a
commit once, written into the folder's manifest, and used from then on.
"""

import hashlib
import json
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

from abc_embed.data.published.dataset import is_inside, own_file
from abc_embed.data.published.layouts import LAYOUTS
from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.storage.files import atomic_write, make_folder

MANIFEST_FILE = "source.json"
TRIES = 5
"""How often in a row nothing may come, before a fetch is given up; what has come is kept."""
_PAUSE_S = 2.0
_TIMEOUT_S = 60.0
_PIECE = 1 << 22
_CHUNK = 1 << 16  # a line that breaks loses less than this
_BEGUN_FOLDER = "fetching"
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]  # see hub.py
_INDEX_SHARE = 0.02
"""Of the size that is fetched, kept free for the index and the rows."""

Counted = Callable[[int, int], None]
Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the hub, and how to know it."""

    name: str
    size: int
    sha256: str | None
    """Of large files; of small ones the hub has only git's."""
    git_sha1: str | None


@dataclass(slots=True)
class Manifest:
    """What a folder is to hold: written before anything is fetched."""

    source: str
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
        with atomic_write(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = own_file(folder, MANIFEST_FILE)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{**kept, "files": [RemoteFile(**file) for file in kept["files"]]})
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise DataError(f"{path} cannot be read; delete it and fetch again") from problem


@dataclass(frozen=True, slots=True)
class Fetching:
    """What a fetch will take, known before it starts."""

    manifest: Manifest
    missing: int
    """Bytes that are still to come."""
    free: int
    """Bytes of disk."""

    @property
    def repository(self) -> str:
        return self.manifest.repository

    @property
    def commit(self) -> str:
        return self.manifest.commit

    @property
    def files(self) -> list[RemoteFile]:
        return self.manifest.files

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "repository": self.repository,
            "commit": self.commit,
            "files": [asdict(file) for file in self.files],
            "bytes": self.size,
            "missing_bytes": self.missing,
            "free_bytes": self.free,
        }


def plan(name: str, folder: Path) -> Fetching:
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
        manifest = _ask(plain, revision or None)
    place = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    return Fetching(manifest, _missing(folder, manifest), shutil.disk_usage(place).free)


def _missing(folder: Path, manifest: Manifest) -> int:
    """Bytes to come; what is there of a file that was broken off is not to come."""
    missing = 0
    for file in manifest.files:
        if _size(folder / file.name) != file.size:
            missing += file.size - min(max(_size(_begun(folder, file)), 0), file.size)
    return missing


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _begun(folder: Path, file: RemoteFile) -> Path:
    """Where a file lies until it is whole and right."""
    return own_file(folder, _BEGUN_FOLDER) / file.name


def _ask(name: str, revision: str | None) -> Manifest:
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
    planned: Fetching,
    folder: Path,
    *,
    said: Said = lambda message: None,
    counted: Counted = lambda done, of: None,
) -> None:
    """Fetch what is missing, and compare every file; a file that is wrong is fetched once more.

    `counted` is told bytes of all files together.

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
            said(f"{number} of {len(manifest.files)}: {file.name} ({file.size / 1e6:,.1f} MB)")
            done = before
            _bring(folder, manifest, file, said, lambda n, done=done: counted(done + n, total))  # type: ignore[misc]
            manifest.checked[file.name] = (folder / file.name).stat().st_mtime_ns
            manifest.write(folder)
        before += file.size
        counted(before, total)
    shutil.rmtree(own_file(folder, _BEGUN_FOLDER), ignore_errors=True)


def _bring(
    folder: Path, manifest: Manifest, file: RemoteFile, said: Said, counted: Callable[[int], None]
) -> None:
    """Put one file into its place, right; one that is wrong is fetched once more."""
    path, begun = folder / file.name, _begun(folder, file)
    if _size(path) == file.size:
        why = _wrong(path, file)
        if why is None:
            return
        said(f"{file.name} is there with {why}; it is fetched again")
    for last in (False, True):
        try:
            make_folder(begun.parent)
            make_folder(path.parent)
            _download(manifest, file, begun, counted)
            why = _wrong(begun, file)
            if why is None:
                begun.replace(path)
                return
            begun.unlink()
        except OSError as problem:
            raise OutputError(
                f"{path} cannot be written: {problem.strerror or problem}; make room, or choose "
                "another folder"
            ) from problem
        if not last:
            said(f"{file.name} came with {why}; it is fetched again")
    raise DataError(f"{file.name} came twice with {why}; name another revision, or report it")


def _download(
    manifest: Manifest, file: RemoteFile, begun: Path, counted: Callable[[int], None]
) -> None:
    """Append what is missing to `begun`, however often the line breaks while something comes."""
    tries = TRIES
    while (done := max(_size(begun), 0)) < file.size or not begun.exists():
        problem: Exception | None = None
        try:
            _ask_for_the_rest(manifest, file, begun, done, counted)
        except (_HTTP_ERROR, ConnectionError, TimeoutError) as broken:
            problem = broken
        if _size(begun) > done or _size(begun) == file.size:
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
        time.sleep(_PAUSE_S)


def _ask_for_the_rest(
    manifest: Manifest, file: RemoteFile, begun: Path, done: int, counted: Callable[[int], None]
) -> None:
    url = hf_hub_url(manifest.repository, file.name, repo_type="dataset", revision=manifest.commit)
    # As it is: a packed answer would have other byte numbers than the file.
    headers = {"Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    if done:
        headers["Range"] = f"bytes={done}-"
    ask = get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    )
    with ask as answer:
        if answer.status_code == 416:  # it has no such bytes: what is here is not of this file
            begun.unlink()
            return
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        done = done if goes_on else 0
        with begun.open("ab" if goes_on else "wb") as out:
            for piece in answer.iter_bytes(_CHUNK):
                if done + len(piece) > file.size:
                    raise DataError(
                        f"{file.name} is larger than the hub says; name another revision"
                    )
                out.write(piece)
                done += len(piece)
                counted(done)


def _wrong(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a file, or None."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    expected = file.sha256 or file.git_sha1
    return None if expected in (None, digest.hexdigest()) else "another hash"

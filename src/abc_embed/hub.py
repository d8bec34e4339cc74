"""Names of models -> folders on this machine; nothing is fetched that was not named.

The commit hashes of the published repositories were not known where this was written, and none is
made up here. `name@revision` pins by hand. Without it the default branch is resolved to a commit
hash on the first fetch; from then on the copy in the local cache is used, so the weights do not
move under you; the hash is logged, and recorded in the configuration of every model that is saved.
Delete the cached copy, or name a revision, to get another.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abc_embed.errors import (
    AbcError,
    CheckpointError,
    OfflineError,
    OutputError,
    UnknownModelError,
    UsageError,
)
from abc_embed.storage.folders import recover_folder
from abc_embed.storage.hashing import sha256_file, sha256_json
from abc_embed.storage.json_files import read_json

BUNDLED = "bundled"
"""Name of the small model inside the package."""

BASE_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
DESCRIPTION = "abc.json"
"""What a folder of ours has, and nothing else."""
MODEL_FILES = (
    *(DESCRIPTION, "vectors.json", "config.json", "preprocessor_config.json", "tokenizer*.json"),
    *("*.jinja", "model*.safetensors", "model*.safetensors.index.json", "head.safetensors"),
    *(f"instruct_adapter/{name}" for name in ADAPTER_FILES),
)
"""Of a folder of ours on a hub: data alone, no code and nothing in Python's pickle format."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# The HTTP client under huggingface_hub changes with its releases: take the root of the client's own
# errors (a proxy that refuses, say) from the class that inherits it.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A model as published: a base, its stage-1 adapter and, maybe, its stage-2 adapter.

    Each is a local folder, or `owner/name` or `owner/name@revision` on the Hugging Face hub.
    """

    base: str
    pretrain: str
    instruct: str | None = None


PUBLISHED = {
    "TIGER-Lab/ABC-Qwen2VL-Instruct": Recipe(
        base="Qwen/Qwen2-VL-7B-Instruct",
        pretrain="TIGER-Lab/ABC-Qwen2VL-Pretrain",
        instruct="TIGER-Lab/ABC-Qwen2VL-Instruct",
    ),
    "TIGER-Lab/ABC-Qwen2VL-Pretrain": Recipe(
        base="Qwen/Qwen2-VL-7B-Instruct",
        pretrain="TIGER-Lab/ABC-Qwen2VL-Pretrain",
    ),
}
"""The published models by name (paper section 2)."""


def resolve(name: str) -> Path | Recipe:
    """A model's name -> its folder, or the parts it is made of. Touches no network.

    `name` is "bundled", a local folder, or a published name with or without `@revision`; the
    revision is that of the named repository.

    Raises:
        UnknownModelError: no such name; the message lists those that are known.
    """
    if name == BUNDLED:
        return bundled_folder()
    folder = _local(name)
    if folder.is_dir():
        return model_folder(folder)
    plain, _, revision = name.partition("@")
    if plain not in PUBLISHED:
        known = ", ".join([BUNDLED, *PUBLISHED])
        raise UnknownModelError(
            f"the model {name!r} is neither a folder nor a known name; known names are: {known}"
        )
    recipe = PUBLISHED[plain]
    if not revision:
        return recipe
    if recipe.instruct == plain:
        return Recipe(base=recipe.base, pretrain=recipe.pretrain, instruct=name)
    return Recipe(base=recipe.base, pretrain=name)


def model_folder(folder: Path) -> Path:
    """The folder itself or, of a training run, the model in it."""
    inner = folder / "model"
    is_run = not (folder / "abc.json").exists() and (inner / "abc.json").is_file()
    return inner if is_run else folder


def is_remote_folder(name: str) -> bool:
    """Whether a name can only mean a folder of ours on a hub: `owner/name` or with `@revision`."""
    if name == BUNDLED or name.partition("@")[0] in PUBLISHED:
        return False
    return bool(_HUB_NAME.fullmatch(name)) and not _local(name).is_dir()


def _local(name: str) -> Path:
    """The folder that a name means, if it means one; what a kill left half done is finished."""
    folder = Path(name).expanduser()
    with suppress(OSError):
        recover_folder(folder)
    return folder


def bundled_folder() -> Path:
    """The folder of the model inside the package.

    Raises:
        CheckpointError: this installation came without it.
    """
    folder = Path(__file__).parent / "bundled" / "model"
    if not folder.is_dir():
        raise CheckpointError(
            f"the bundled model is missing from this installation ({folder}); install the package"
            " again, or make it in a checkout with: make bundled"
        )
    return folder


def locate(name: str, files: tuple[str, ...]) -> tuple[Path, str]:
    """A folder, or a hub name -> (folder on this machine, what to record as its source).

    The source of a fetched repository is `owner/name@commit`; that of a local folder is its name.
    `files` are the patterns to fetch.

    Raises:
        UnknownModelError: there is no such folder or repository.
        OfflineError: it would have to be fetched and cannot.
        CheckpointError: the hub does not let us have it.
        OutputError: there is no room for it.
    """
    folder = _local(name)
    if folder.is_dir():
        return folder, folder.resolve().name
    if not _HUB_NAME.fullmatch(name):
        raise UnknownModelError(
            f"there is no folder {name!r}; give a folder, or owner/name[@revision] on the hub"
        )
    repository, _, revision = name.partition("@")
    fetched = _fetch(repository, revision or None, files)
    # The hub's cache calls a snapshot's folder by its commit hash.
    logger.info("%s is used at commit %s", repository, fetched.name)
    return fetched, f"{repository}@{fetched.name}"


def fetch_model(name: str) -> tuple[Path, str]:
    """A folder of ours on a hub -> as `locate`; nothing else of the repository is fetched.

    Raises:
        CheckpointError: the repository holds no model of ours.
        UnknownModelError, OfflineError, OutputError: as `locate`.
    """
    repository, _, revision = name.partition("@")
    folder = _fetch(repository, revision or None, (DESCRIPTION,))
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(
            f"{repository} holds no model of ours (no {DESCRIPTION}); a plain base with adapters is"
            " loaded with Embedder.from_adapters"
        )
    return locate(f"{repository}@{folder.name}", MODEL_FILES)


def _fetch(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The files of a repository that match, from the cache if they are all there."""
    patterns = list(files)
    try:
        folder, whole = _in_cache(repository, revision, patterns)
        if folder is None or not whole:
            # A part of it may be there: it is completed as it was, not moved on.
            at = revision if folder is None else folder.name
            folder = Path(snapshot_download(repository, revision=at, allow_patterns=patterns))
            # Without an answer of the hub, what is there was given out without a word.
            asks_for_weights = "*.safetensors" in patterns
            if asks_for_weights and not (_has_weights(folder) or _is_listed(repository, folder)):
                raise LocalEntryNotFoundError("the weights are not there")
    except Exception as problem:
        raise _fetch_error(repository, revision, problem) from problem
    return folder


def _in_cache(
    repository: str, revision: str | None, patterns: list[str]
) -> tuple[Path | None, bool]:
    """The folder in the hub's cache, and whether all files that match are surely in it.

    Known by the list of files that a fetch leaves there; another program may have left a part of
    them without a list, and then nobody knows.
    """
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
        return folder, _is_listed(repository, folder)
    except IncompleteSnapshotError as problem:
        return Path(problem.snapshot_path), False
    except LocalEntryNotFoundError:
        return None, False


def _is_listed(repository: str, snapshot: Path) -> bool:
    """Whether the cache knows which files the repository has at that commit."""
    try:
        return bool(get_cached_repo_tree(repository, revision=snapshot.name))
    except CachedRepoTreeNotFoundError:
        return False


def _fetch_error(repository: str, revision: str | None, problem: Exception) -> AbcError:
    """What went wrong with a fetch, and what to do."""
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if isinstance(problem, GatedRepoError):
        return CheckpointError(
            f"the hub repository {repository} asks for its licence to be accepted; do so on its"
            " page, then run: hf auth login"
        )
    if isinstance(problem, RevisionNotFoundError):
        return UnknownModelError(f"{repository} has no revision {revision!r}")
    if isinstance(problem, RepositoryNotFoundError | HFValidationError):
        known = ", ".join([BUNDLED, *PUBLISHED])
        return UnknownModelError(
            f"{repository!r} is neither a folder here nor a repository of the Hugging Face hub that"
            f" you may read (a private one needs: hf auth login); known names are: {known}"
        )
    if status in (401, 403):
        return CheckpointError(
            f"the hub refuses {repository} to this token ({status}); run: hf auth login"
        )
    if isinstance(problem, OSError) and problem.errno in _DISK_ERRORS:
        return OutputError(
            f"{repository} cannot be kept in {HF_HUB_CACHE} ({problem.strerror}); make room, or"
            " name another folder in HF_HOME"
        )
    if isinstance(problem, OSError | _HTTP_ERROR):
        why = "" if status is None else f" (it answers {status})"
        return OfflineError(
            f"{repository!r} is no folder on this machine and the Hugging Face hub cannot be"
            f" reached to fetch it whole{why}; connect this machine and ask again (what has come is"
            " kept), or give local folders"
        )
    raise problem


def upload_folder(
    folder: Path, name: str, *, private: bool, token: str | None, message: str
) -> str:
    """Make a folder of ours the content of a repository, which is made if need be.

    Returns:
        `owner/name@commit`.

    Raises:
        UsageError: `name` is none, or the hub refuses the card.
        OutputError: the hub cannot be reached, or does not let this token write there.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            # What an earlier push left and this one lacks: an adapter, say.
            delete_patterns=["*.safetensors", "*.json", "*.jinja"],
        )
    except HFValidationError as problem:
        raise UsageError(f"{name!r} is no name for a hub; give owner/name") from problem
    except Exception as problem:
        raise _push_error(name, problem) from problem
    return f"{name}@{done.oid}"


def _push_error(name: str, problem: Exception) -> AbcError:
    """What went wrong on the way to a hub, and what to do."""
    while isinstance(problem, RuntimeError) and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__  # of one of its threads
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return OutputError(
            f"the hub does not let this token write {name} ({status}); run: hf auth login, with a"
            " token that may write there"
        )
    if isinstance(problem, OSError) and problem.errno in _DISK_ERRORS:
        return OutputError(f"{name} cannot be pushed ({problem.strerror}); make room")
    if isinstance(problem, OSError | _HTTP_ERROR | json.JSONDecodeError):
        why = "cannot be reached" if status is None else f"answers {status}"
        return OutputError(f"{name} was not pushed: the Hugging Face hub {why}; ask again")
    if isinstance(problem, ValueError):
        why = " ".join(str(problem).split())
        return UsageError(f"the hub refuses the card of {name}: {why:.300}")
    raise problem


def is_cached(repository: str, patterns: tuple[str, ...]) -> bool:
    """Whether the hub's cache has the weights; a fetch that was broken off lacks the last ones."""
    try:
        folder = Path(
            snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return False
    return _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    names = set(read_json(index)["weight_map"].values())
    return all((folder / name).exists() for name in names)


def is_embedder(base: str) -> bool:
    """Whether `base` names a model with a trained head: one of ours, or a published one."""
    known = base == BUNDLED or base.partition("@")[0] in PUBLISHED
    return known or (model_folder(Path(base).expanduser()) / "abc.json").is_file()


def fingerprint(base: str, hash_file: Callable[[Path], str] = sha256_file) -> str:
    """The name of the files that make up a model, whatever its folder is called.

    `hash_file` is what names a file's content.

    Raises:
        CheckpointError: a file cannot be read; or as `locate`.
    """
    parts: list[tuple[Path, tuple[str, ...]]] = []
    if is_embedder(base):
        recipe = resolve(base)
        if isinstance(recipe, Path):
            parts = [(recipe, BASE_FILES)]
        else:
            adapters = [name for name in (recipe.pretrain, recipe.instruct) if name is not None]
            wanted = [
                (recipe.base, BASE_FILES),
                *((name, ADAPTER_FILES) for name in adapters),
            ]
            parts = [(locate(name, files)[0], files) for name, files in wanted]
    else:
        parts = [(locate(base, BASE_FILES)[0], BASE_FILES)]
    try:
        return sha256_json(
            [hash_files(folder, files_of(folder, names), hash_file) for folder, names in parts]
        )
    except OSError as problem:
        raise CheckpointError(f"{problem.filename} cannot be read: {problem.strerror}") from problem


def files_of(place: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """The files of a folder, hidden ones left out; or the one file that it is."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and any(Path(name).match(pattern) for pattern in patterns):
                yield Path(folder, name)


def hash_files(
    root: Path, files: Iterable[Path], hash_file: Callable[[Path], str] = sha256_file
) -> str:
    """SHA-256 over the files' names from `root` and the hashes of their contents."""
    hashes = {os.path.relpath(path, root): hash_file(path) for path in files}
    return sha256_json(hashes)

"""Names of models -> folders on this machine; nothing is fetched that was not named.

The commit hashes of the published repositories were not known where this was written, and none is
made up here. `name@revision` pins by hand. Without it the default branch is resolved to a commit
hash on the first fetch; from then on the copy in the local cache is used, so the weights do not
move under you; the hash is logged, and recorded in the configuration of every model that is saved.
Delete the cached copy, or name a revision, to get another.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abc_embed.errors import CheckpointError, OfflineError, UnknownModelError
from abc_embed.storage.hashing import sha256_file, sha256_json
from abc_embed.storage.json_files import read_json

BUNDLED = "bundled"
"""Name of the small model inside the package."""

BASE_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# The HTTP client under huggingface_hub changes with its releases: take the root of the client's own
# errors (a proxy that refuses, say) from the class that inherits it.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]

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
    folder = Path(name).expanduser()
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
    """
    folder = Path(name).expanduser()
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


def _fetch(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    patterns = list(files)
    try:
        try:
            cached = snapshot_download(
                repository, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        except LocalEntryNotFoundError:
            cached = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except GatedRepoError as problem:
        raise CheckpointError(
            f"the hub repository {repository} asks for its licence to be accepted; do so on its"
            " page, then run: hf auth login"
        ) from problem
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise UnknownModelError(
            f"{repository!r} is neither a folder here nor a repository of the Hugging Face hub"
        ) from problem
    except RevisionNotFoundError as problem:
        raise UnknownModelError(f"{repository} has no revision {revision!r}") from problem
    except (LocalEntryNotFoundError, OSError, _HTTP_ERROR) as problem:
        raise OfflineError(
            f"{repository!r} is no folder on this machine and the Hugging Face hub cannot be"
            " reached to fetch it; connect this machine, or give local folders"
        ) from problem
    return Path(cached)


def is_cached(repository: str, patterns: tuple[str, ...]) -> bool:
    """Whether the hub's cache has the weights; a fetch that was broken off lacks the last ones."""
    try:
        folder = Path(
            snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    names = set(read_json(index)["weight_map"].values())
    return all((folder / name).exists() for name in names)


def is_embedder(base: str) -> bool:
    """Whether `base` names a model with a trained head: one of ours, or a published one."""
    known = base == BUNDLED or base.partition("@")[0] in PUBLISHED
    return known or (model_folder(Path(base).expanduser()) / "abc.json").is_file()


def fingerprint(base: str) -> str:
    """The name of the files that make up a model, whatever its folder is called.

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
        return sha256_json([hash_files(folder, files_of(folder, names)) for folder, names in parts])
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


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the files' names from `root` and their contents."""
    hashes = {os.path.relpath(path, root): sha256_file(path) for path in files}
    return sha256_json(hashes)

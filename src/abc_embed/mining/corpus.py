"""What is mined: the different captions of a data set, numbered, and which images are equal.

Of an image with several captions the first is scored, and drawn as a negative of others; no caption
of an image becomes its own negative.

Shapes: `N` rows of the data set, `M` different captions.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Dataset, open_dataset
from abc_embed.data.dataset import CaptionHash
from abc_embed.errors import DataError, InputError
from abc_embed.mining.settings import Ints
from abc_embed.progress import ProgressCallback
from abc_embed.storage.hashing import sha256, sha256_file, short_hash

_REPORT_EVERY = 256


@dataclass(slots=True, eq=False)
class Corpus:
    """A data set by number, without its images and records."""

    dataset: Dataset
    caption_of: Ints
    """`(N,)` the different caption of each row, of several its first; -1 for none."""
    digests: NDArray[np.uint8]
    """`(N, 32)` SHA-256 of each image file; zeros where there is none."""
    captions: list[str] = field(default_factory=list)
    """The `M` different captions, in the order in which they come first."""
    rejected: dict[int, str] = field(default_factory=dict)
    """Rows that cannot be used, and why."""
    fingerprint: str = ""
    """Of ids and captions in their order, as `data.dataset.CaptionHash` has it."""
    also_true: Ints = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """`(n, 2)`: a row, and one of the different captions that is true of it beside its first."""

    def __len__(self) -> int:
        return len(self.caption_of)

    @property
    def without_caption(self) -> int:
        """Rows that are good but have nothing to mine."""
        return int((self.caption_of < 0).sum()) - len(self.rejected)

    @property
    def minable(self) -> Ints:
        """Numbers of the rows that have an image and a caption, ascending."""
        return np.flatnonzero(self.caption_of >= 0)

    @property
    def first_rows(self) -> Ints:
        """`(M,)` the first row of each caption."""
        rows = self.minable
        return rows[np.unique(self.caption_of[rows], return_index=True)[1]]

    def also_true_among(self, rows: Ints, texts: Ints) -> Ints:
        """`also_true` as places in some ascending rows and captions; others are left out."""
        pairs = self.also_true[np.isin(self.also_true[:, 0], rows)]
        pairs = pairs[np.isin(pairs[:, 1], texts)]
        places = [np.searchsorted(rows, pairs[:, 0]), np.searchsorted(texts, pairs[:, 1])]
        return np.stack(places, axis=1).astype(np.int64)

    def images(self, numbers: Ints) -> tuple[NDArray[np.void], Ints]:
        """The different digests of these rows' images `(m,)`, and which of them each has `(n,)`."""
        whole = np.ascontiguousarray(self.digests[numbers]).view("V32")[:, 0]
        digests, which = np.unique(whole, return_inverse=True)
        return digests, which.astype(np.int64)


def read_corpus(
    source: str | Path | Dataset, on_progress: ProgressCallback = lambda done, total=None: None
) -> Corpus:
    """Read a data set once, images included, to know which are equal.

    Rows that cannot be used are in `Corpus.rejected`, and stop nothing.

    Raises:
        DataError: there is no data set, or no row of it can be mined.
    """
    dataset = open_dataset(source)
    count = len(dataset)
    corpus = Corpus(dataset, np.full(count, -1, np.int64), np.zeros((count, 32), dtype=np.uint8))
    numbers: dict[str, int] = {}
    seen_ids: set[str] = set()
    captions = CaptionHash()
    others: list[tuple[int, bytes]] = []  # rows, and hashes of their further captions
    for number in range(count):
        try:
            row = dataset.row(number)
            captions.add(number, row.record)
            if row.record.id in seen_ids:
                raise DataError(f"the id {row.record.id!r} comes twice; give each its own")
            seen_ids.add(row.record.id)
            if row.record.caption is not None:
                corpus.digests[number] = _digest(row.image)
                corpus.caption_of[number] = numbers.setdefault(row.record.caption, len(numbers))
                others += [(number, short_hash(t.encode())) for t in row.record.captions[1:]]
        except (DataError, InputError) as error:
            corpus.rejected[number] = str(error)
        if number % _REPORT_EVERY == 0 or number == count - 1:
            on_progress(number + 1, count)
    corpus.captions, corpus.fingerprint = list(numbers), captions.hexdigest()
    if others:
        known = {short_hash(text.encode()): number for text, number in numbers.items()}
        pairs = [(row, known[key]) for row, key in others if key in known]
        corpus.also_true = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if not numbers:
        first = next(iter(corpus.rejected.values()), None)
        if first is None:
            raise DataError(f"no row of {dataset.path} has a caption; captions are what is mined")
        raise DataError(f"no row of {dataset.path} can be used; the first: {first}")
    return corpus


def _digest(image: Path | bytes) -> NDArray[np.uint8]:
    """`(32,)` SHA-256 of an image file."""
    try:
        digest = sha256(image) if isinstance(image, bytes) else sha256_file(image)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(image)!r}; put it there") from None
    except OSError as problem:
        raise DataError(f"{str(image)!r} cannot be read ({problem.strerror})") from problem
    return np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)

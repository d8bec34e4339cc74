"""mteb: our models as its encoders, and CtrlBench as one of its tasks.

Nothing is fetched: `mteb.evaluate(..., cache=None)` with these two needs no network.

Traps minded: mteb hands pictures of retrieval sets over as they are stored, grey or with a palette
(here every picture goes through `inputs.open_image`); a live multimodal `SentenceTransformer` loses
its pictures in mteb without an error (hand over a `MtebEncoder` instead); and with several right
answers its `recall_at_1` is no R@1, `hit_rate_at_1` is.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from typing import Any, ClassVar

import numpy as np

from abc_embed.bench.ctrlbench.schema import PAIR_TIER, Benchmark, read_benchmark
from abc_embed.bench.encoders.base import Vectors, image_hash
from abc_embed.bench.encoders.registry import Encoder
from abc_embed.errors import DataError, InputError, MissingExtraError
from abc_embed.inputs import ImageInput, Item, Kind

try:
    from datasets import Dataset, Image
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError:
    raise MissingExtraError.of("bench", "mteb") from None

logger = logging.getLogger(__name__)

SPLIT = "test"
MAX_ROWS = 256
"""Rows whose pictures are in memory together."""


class MtebEncoder(AbsEncoder):
    """Any `Encoder` (`bench.encoders.registry.load_encoder`) as mteb calls it.

    A row with a picture and words is an image with an instruction; mteb has put a query's text and
    its instruction together by then. Prompts that mteb's tasks carry are not used: they were not
    part of what our models are trained on.
    """

    refused: list[str]
    """Why rows could not be embedded, one sentence each; their vectors are zero."""

    def __init__(self, encoder: Encoder, *, max_pixels: int | None = None) -> None:
        self.encoder = encoder if max_pixels is None else encoder.at(max_pixels)
        self.refused = []
        name = (
            encoder.name
            if encoder.name.count("/") == 1
            else f"abc-embed/{_plain_name(encoder.name)}"
        )
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": encoder.fingerprint,
                "embed_dim": encoder.dim,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": _modalities(encoder.supported_kinds),
                "use_instructions": Kind.INSTRUCTED in encoder.supported_kinds,
                "experiment_kwargs": None if max_pixels is None else {"max_pixels": max_pixels},
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Sequence[Any]]], **_: Any) -> Vectors:
        """mteb's batches, `N` rows in all -> `(N, D)`.

        A row that cannot be embedded gets zeros, which are like nothing, and is in `refused`.

        Raises:
            UsageError: the model does not take a row's kind.
            DataError: a row has neither a picture nor words.
            InputError: none of the rows can be embedded.
        """
        before = len(self.refused)
        vectors = [np.zeros((0, self.encoder.dim), dtype=np.float32)]
        rows = (item for batch in inputs for item in batch_items(batch))
        while part := list(islice(rows, MAX_ROWS)):
            vectors.append(self._embed(_share_pictures(part)))
        found, refused = np.concatenate(vectors), self.refused[before:]
        if refused and len(refused) == len(found):
            raise InputError(f"none of {len(found)} rows can be embedded; the first: {refused[0]}")
        if refused:
            logger.warning(
                "%d of %d rows cannot be embedded, and get zeros; the first: %s",
                len(refused),
                len(found),
                refused[0],
            )
        return found

    def _embed(self, items: Sequence[Item]) -> Vectors:
        """`M` rows -> `(M, D)`; those around one that is refused in halves, until it is alone."""
        try:
            return self.encoder.embed(items)
        except InputError as why:
            if len(items) == 1:
                self.refused.append(str(why).removeprefix("item 0: "))
                return np.zeros((1, self.encoder.dim), dtype=np.float32)
        half = len(items) // 2
        return np.concatenate([self._embed(items[:half]), self._embed(items[half:])])


def batch_items(batch: Mapping[str, Sequence[Any]]) -> Iterator[Item]:
    """The rows of one of mteb's batches, which are columns, as items.

    Raises:
        DataError: the batch has neither a column of pictures nor one of texts, or a row is empty.
    """
    columns = [batch[name] for name in ("image", "text") if name in batch]
    if not columns:
        raise DataError(
            f"mteb gave a batch with the columns {sorted(batch)}; only tasks of images and texts"
            " can be run"
        )
    absent = [None] * len(columns[0])
    pictures, texts = batch.get("image", absent), batch.get("text", absent)
    for picture, text in zip(pictures, texts, strict=True):
        words = text if isinstance(text, str) and text.strip() else None
        if picture is None and words is None:
            raise DataError("mteb gave a row with neither a picture nor words; mend the data set")
        if picture is None:
            yield Item(text=words)
        else:
            yield Item(image=picture, instruction=words)


def _share_pictures(items: Sequence[Item]) -> list[Item]:
    """The same items; equal pictures are one object, so that a model of ours encodes them once."""
    pictures: dict[str, ImageInput] = {}
    return [
        item
        if item.image is None
        else replace(item, image=pictures.setdefault(image_hash(item.image), item.image))
        for item in items
    ]


def _modalities(kinds: frozenset[Kind]) -> list[str]:
    has = {"text": Kind.TEXT in kinds, "image": Kind.IMAGE in kinds or Kind.INSTRUCTED in kinds}
    return [name for name, there in has.items() if there]


def _plain_name(name: str) -> str:
    """A name without what mteb would take for an organisation or a folder."""
    return name.replace("/", "_").replace(":", "_")


# -- CtrlBench -------------------------------------------------------------------------------------


class CtrlBenchTask(AbsTaskRetrieval):
    """A CtrlBench folder; made by `ctrlbench_task`. Its main score is R@1 (`hit_rate_at_1`)."""

    k_values = (1, 5, 10)
    benchmark: ClassVar[Benchmark]
    tiers: ClassVar[tuple[str, ...]]

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """From the folder; nothing is fetched. Pictures are opened when they are embedded."""
        if self.data_loaded:
            return
        benchmark = self.benchmark
        files = {p.image_id: p.file for p in benchmark.images if p.file not in benchmark.missing}
        chosen = [q for q in benchmark.queries if q.tier in self.tiers]
        here = [q for q in chosen if q.image_id in files]
        if len(here) < len(chosen):
            logger.warning(
                "%s: %d of %d queries are left out, since their pictures are not there: %s",
                benchmark.name,
                len(chosen) - len(here),
                len(chosen),
                ", ".join(benchmark.missing[:5]),
            )
        if not here:
            raise DataError(
                f"{benchmark.folder} has no query whose picture is there; copy it again"
            )
        queries = Dataset.from_dict(
            {
                "id": [q.query_id for q in here],
                "text": [q.instruction for q in here],
                "image": [str(benchmark.folder / files[q.image_id]) for q in here],
            }
        ).cast_column("image", Image())
        corpus = Dataset.from_dict(
            {
                "id": [caption.cap_id for caption in benchmark.corpus],
                "text": [caption.text for caption in benchmark.corpus],
            }
        )
        self.dataset = {
            "default": {
                SPLIT: {
                    "corpus": corpus,
                    "queries": queries,
                    "relevant_docs": {q.query_id: dict.fromkeys(q.positives, 1) for q in here},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def ctrlbench_task(
    folder: "str | PathLike[str]", tiers: Sequence[str] | None = None
) -> CtrlBenchTask:
    """A CtrlBench folder as a task for `mteb.evaluate`; None takes all its tiers.

    Queries whose pictures are missing are left out, with a warning that counts them.

    Raises:
        DataError: the folder is not one, or has no such tier.
    """
    benchmark = read_benchmark(folder)
    chosen = benchmark.tiers if tiers is None else tuple(tiers)
    unknown = [tier for tier in chosen if tier not in benchmark.tiers]
    if unknown or PAIR_TIER in chosen:
        raise DataError(
            f"{folder} has no tier {(unknown or [PAIR_TIER])[0]!r}; "
            f"choose from {', '.join(benchmark.tiers)}"
        )
    # A class for each folder: mteb empties the objects of its tasks when it has run them.
    fields = {"benchmark": benchmark, "tiers": chosen, "metadata": _metadata(benchmark, chosen)}
    task: CtrlBenchTask = type("CtrlBenchTask", (CtrlBenchTask,), fields)()
    return task


def _metadata(benchmark: Benchmark, tiers: Sequence[str]) -> TaskMetadata:
    return TaskMetadata(
        name=f"CtrlBench-{''.join(tiers)}-{_plain_name(benchmark.name)}",
        description="Does the vector of an image and an instruction follow the instruction? "
        "Captions of the whole benchmark are the candidates.",
        dataset={"path": _plain_name(benchmark.name), "revision": benchmark.content_hash()},
        type="Any2AnyRetrieval",
        category="it2t",
        modalities=["image", "text"],
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
        bibtex_citation="",
    )

"""MSCOCO and Flickr30K in Karpathy's split: captions of images, both ways.

MSCOCO 5K has 25,000 captions: the first five of each image. mteb's copy has 24,809, so that the two
do not belong in one table. Any of an image's captions counts as right; ties count against the
model. Many of MSCOCO's "wrong" captions are right, so further right pairs come from the package
`eccv-caption`: CxC ranks models as R@1 does, ECCV's mAP@R otherwise.

Shapes: `I` images, `C` captions.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.bench.metrics import BLOCK, map_at_r
from abc_embed.bench.retrieval import RECALLS, Ranked, Retrieval, recall
from abc_embed.bench.sets.evaluation import EvaluationSet
from abc_embed.errors import DataError, MissingExtraError
from abc_embed.inputs import Item
from abc_embed.storage.json_files import read_json

CAPTIONS_PER_IMAGE = 5
"""Those that take part; some images of MSCOCO have six or seven."""

Pairs = dict[int, tuple[int, ...]]
"""Query -> its right candidates, by their places in the set."""


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Images and captions, each of one image."""

    name: str
    images: tuple[Path, ...]
    """`I` files that are there."""
    image_ids: tuple[int, ...]
    """`(I,)`: COCO's number of an image, else its place in the file."""
    captions: tuple[str, ...]
    """`C` texts."""
    caption_ids: tuple[int, ...]
    """`(C,)`: COCO's number of a caption."""
    image_of: tuple[int, ...]
    """`(C,)`: which image a caption is of."""
    missing: tuple[str, ...]
    """Images of the split without a file; they and their captions take no part."""


@dataclass(frozen=True, slots=True)
class Positives:
    """Queries of both directions that have judgements, and their right candidates."""

    name: str
    to_text: Pairs
    """Image -> captions."""
    to_image: Pairs
    """Caption -> images."""
    absent: int
    """Judged pairs that name an image or a caption which is not in the set."""


# -- the files -------------------------------------------------------------------------------------


def load_karpathy(file: Path, images: Path, *, split: str = "test") -> CaptionSet:
    """The images of a split of `dataset_coco.json` or `dataset_flickr30k.json`.

    Args:
        images: the folder that its paths start from; a path is `filepath/filename` (MSCOCO:
            `val2014/…`) or `filename` alone.

    Raises:
        DataError: the file is not of this kind, names no image of the split, or an entry lacks
            something.
    """
    entries = _entries(file, split)
    files: list[Path] = []
    image_ids: list[int] = []
    missing: list[str] = []
    captions: list[tuple[int, int, str]] = []
    for number, entry in entries:
        name, image_id, sentences = _parse(file, number, entry)
        path = next((p for p in _places(images, entry, name) if p.is_file()), None)
        if path is None:
            missing.append(name)
            continue
        captions += [(len(files), caption_id, text) for caption_id, text in sentences]
        files.append(path)
        image_ids.append(image_id)
    stem, count = file.stem.removeprefix("dataset_"), len(entries)
    image_of, caption_ids, texts = zip(*captions, strict=True) if captions else ((), (), ())
    return CaptionSet(
        name=f"{stem}-{count // 1000}k" if count % 1000 == 0 else f"{stem}-{count}",
        images=tuple(files),
        image_ids=tuple(image_ids),
        captions=texts,
        caption_ids=caption_ids,
        image_of=image_of,
        missing=tuple(missing),
    )


def _entries(file: Path, split: str) -> list[tuple[int, dict[str, Any]]]:
    content = read_json(
        file, error=DataError, mend="give dataset_coco.json or dataset_flickr30k.json"
    )
    try:
        splits = [str(entry["split"]) for entry in content["images"]]
    except (KeyError, TypeError) as problem:
        raise DataError(
            f"{file} is no file of Karpathy's splits ({problem!r}); get it again"
        ) from None
    if split not in splits:
        known = ", ".join(sorted(set(splits))) or "none"
        raise DataError(f"{file} has no image of the split {split!r}; it has {known}")
    return [(n, content["images"][n]) for n, name in enumerate(splits) if name == split]


def _parse(
    file: Path, number: int, entry: dict[str, Any]
) -> tuple[str, int, list[tuple[int, str]]]:
    """Name of the image, its id, and its captions with theirs."""
    try:
        name = str(entry["filename"])
        image_id = int(entry.get("cocoid", entry.get("imgid", number)))
        captions = [
            (int(sentence["sentid"]), str(sentence["raw"]).strip())
            for sentence in entry["sentences"][:CAPTIONS_PER_IMAGE]
        ]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"{file}: images[{number}] lacks something ({problem!r}); get the file again"
        ) from None
    if not captions or not all(text for _, text in captions):
        raise DataError(f"{file}: images[{number}] has no caption, or an empty one; get it again")
    return name, image_id, captions


def _places(folder: Path, entry: dict[str, Any], name: str) -> tuple[Path, ...]:
    """Where the image may lie; never outside of the folder."""
    parts = [str(entry["filepath"]), name] if entry.get("filepath") else [name]
    if any(part.startswith(("/", "\\")) or ".." in Path(part).parts for part in parts):
        return ()
    return (folder.joinpath(*parts), folder / name)


def load_positives(name: str, captions: CaptionSet) -> Positives:
    """Further right pairs of MSCOCO 5K by the numbers of our images; `name` is "cxc" or "eccv".

    Raises:
        MissingExtraError: the package is not installed.
        DataError: none of its pairs is about this set: it is no MSCOCO.
    """
    # The package is found, not imported: importing it warns about what it would like to have.
    package = importlib.util.find_spec("eccv_caption")
    if package is None or package.origin is None:
        raise MissingExtraError.of("bench", "further right pairs of MSCOCO (cxc, eccv)")
    data = Path(package.origin).parent / "data"
    images = {image_id: place for place, image_id in enumerate(captions.image_ids)}
    texts = {caption_id: place for place, caption_id in enumerate(captions.caption_ids)}
    to_text, absent_texts = _judged(data / f"{name}_image_to_caption.json", images, texts)
    to_image, absent_images = _judged(data / f"{name}_caption_to_image.json", texts, images)
    if not to_text or not to_image:
        raise DataError(f"no pair of {name} is about {captions.name}; it belongs to MSCOCO 5K")
    return Positives(name, to_text, to_image, absent_texts + absent_images)


def _judged(
    file: Path, queries: Mapping[int, int], candidates: Mapping[int, int]
) -> tuple[Pairs, int]:
    """The judged pairs of a file by their places, and how many are not in the set."""
    pairs: Pairs = {}
    judged = 0
    for query, right in read_json(file, error=DataError, mend="install eccv-caption anew").items():
        judged += len(right)
        places = tuple(candidates[number] for number in right if number in candidates)
        if int(query) in queries and places:
            pairs[queries[int(query)]] = places
    return pairs, judged - sum(map(len, pairs.values()))


# -- what is asked ---------------------------------------------------------------------------------


def evaluation_set(captions: CaptionSet, further: Sequence[Positives] = ()) -> EvaluationSet:
    """Both directions: R@1, R@5, R@10 with intervals by image, and RSUM; `further` adds CxC and
    ECCV: R@1 and R@5 with all right pairs, and mAP@R (ECCV Caption, section 4)."""
    images = [(Item(image=path),) for path in captions.images]
    texts = [(Item(text=text),) for text in captions.captions]
    own: list[list[int]] = [[] for _ in images]
    for caption, image in enumerate(captions.image_of):
        own[image].append(caption)
    tasks = {
        "image_to_text": Retrieval(queries=images, candidates=texts, golds=own, scores=RECALLS),
        "text_to_image": Retrieval(
            queries=texts,
            candidates=images,
            golds=[(image,) for image in captions.image_of],
            clusters=captions.image_of,
            scores=RECALLS,
        ),
    }
    for positives in further:
        for direction, pairs in (
            ("image_to_text", positives.to_text),
            ("text_to_image", positives.to_image),
        ):
            tasks[f"{positives.name}_{direction}"] = Retrieval(
                queries=[tasks[direction].queries[number] for number in pairs],
                candidates=tasks[direction].candidates,
                golds=list(pairs.values()),
                scores={"r1": recall(1), "r5": recall(5), "map_at_r": _map_at_r},
            )
    return EvaluationSet(
        benchmark=captions.name,
        tasks=tasks,
        rows=list(zip(captions.captions, captions.image_of, strict=True)),
        images=captions.images,
        sizes={"images": len(images), "captions": len(texts)},
        missing=captions.missing,
        summarize=_rsum,
    )


def _map_at_r(ranked: Ranked) -> dict[str, Any]:
    golds = ranked.task.golds
    parts = [
        map_at_r(ranked.queries[at : at + BLOCK] @ ranked.candidates.T, golds[at : at + BLOCK])
        for at in range(0, len(golds), BLOCK)
    ]
    return ranked.share(np.concatenate(parts))


def _rsum(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The sum of R@1, R@5 and R@10 of both directions, in per cent."""
    tasks = ("image_to_text", "text_to_image")
    total = 100 * sum(scores[f"{task}_{metric}"]["value"] for task in tasks for metric in RECALLS)
    of = sum(scores[f"{task}_r1"]["of"] for task in tasks)
    return {"rsum": {"value": total, "interval": None, "of": of}}

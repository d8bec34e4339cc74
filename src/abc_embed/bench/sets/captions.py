"""MSCOCO and Flickr30K in Karpathy's split: captions of images, both ways.

MSCOCO 5K has 25,000 captions: the first five of each image. mteb's copy has 24,809, so that the two
do not belong in one table. Any of an image's captions counts as right; ties count against the
model. Many of MSCOCO's "wrong" captions are right, so further right pairs come from the package
`eccv-caption`: CxC ranks models as R@1 does, ECCV's mAP@R otherwise.

Shapes: `I` images, `C` captions, `D` width, `Q` queries of one direction.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.bench import metrics
from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.metrics import BLOCK, DRAWS, rank_vectors, share
from abc_embed.bench.sets.findings import (
    Findings,
    check_not_empty,
    check_takes_both,
    content_hash,
)
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


# -- the scores ------------------------------------------------------------------------------------


def measure(
    encoder: Encoder,
    captions: CaptionSet,
    further: Sequence[Positives] = (),
    *,
    max_pixels: int | None = None,
    progress: bool = False,
) -> Findings:
    """Both directions, with intervals by image; `further` adds CxC and ECCV.

    Each image and each caption is embedded once.

    Raises:
        UsageError: the encoder takes no images or no texts.
        DataError: not one image is there.
        NotFiniteError, InputError: as the encoder.
    """
    check_takes_both(encoder)
    check_not_empty(captions.images, captions.missing)
    items = [Item(image=path) for path in captions.images]
    images = encoder.embed(items, max_pixels=max_pixels, progress=progress)
    texts = encoder.embed(list(captions.captions), progress=progress)
    scores = both_directions(images, texts, captions)
    for positives in further:
        scores |= _further_scores(images, texts, positives)
    return {
        "benchmark": captions.name,
        "benchmark_hash": content_hash(
            zip(captions.captions, captions.image_of, strict=True), captions.images
        ),
        "settings": {"max_pixels": max_pixels, "draws": DRAWS},
        "sizes": {"images": len(images), "captions": len(texts)},
        "missing": list(captions.missing),
        "scores": scores,
    }


def both_directions(images: Vectors, texts: Vectors, captions: CaptionSet) -> dict[str, Any]:
    """`(I, D)` and `(C, D)` -> R@1, R@5, R@10 of both directions, and RSUM in per cent."""
    own: list[list[int]] = [[] for _ in images]
    for caption, image in enumerate(captions.image_of):
        own[image].append(caption)
    to_text = rank_vectors(images, texts, own)
    to_image = rank_vectors(texts, images, [(image,) for image in captions.image_of])
    scores = {
        f"{direction}_r{k}": share(ranks <= k, clusters)
        for direction, ranks, clusters in (
            ("image_to_text", to_text, np.arange(len(images))),
            ("text_to_image", to_image, np.asarray(captions.image_of)),
        )
        for k in (1, 5, 10)
    }
    total = 100 * sum(score["value"] for score in scores.values())
    return {**scores, "rsum": {"value": total, "interval": None, "of": len(images) + len(texts)}}


def _further_scores(images: Vectors, texts: Vectors, positives: Positives) -> dict[str, Any]:
    """R@1, R@5 with all right pairs and mAP@R, both ways (ECCV Caption, section 4)."""
    scores: dict[str, Any] = {}
    for direction, queries, candidates, pairs in (
        ("image_to_text", images, texts, positives.to_text),
        ("text_to_image", texts, images, positives.to_image),
    ):
        golds, asked = list(pairs.values()), queries[list(pairs)]
        ranks = rank_vectors(asked, candidates, golds)
        precisions = np.concatenate(
            [
                metrics.map_at_r(asked[at : at + BLOCK] @ candidates.T, golds[at : at + BLOCK])
                for at in range(0, len(asked), BLOCK)
            ]
        )
        for name, values in (("r1", ranks == 1), ("r5", ranks <= 5), ("map_at_r", precisions)):
            key = f"{positives.name}_{direction}_{name}"
            scores[key] = share(values, np.arange(len(ranks)))
    return scores

"""Zero-shot classification on any folder of images: one subfolder per class.

Does: word each class as "A photo of a {label}." (paper section 6) and ask the image alone. Does
not: know a data set; `labels` says what a folder's name stands for, where it is a code.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abc_embed.bench import metrics
from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.metrics import DRAWS, share
from abc_embed.bench.sets.findings import Findings, content_hash
from abc_embed.bench.sets.mmeb import TEMPLATE
from abc_embed.data.image_files import find_images
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images by class."""

    name: str
    labels: tuple[str, ...]
    images: tuple[Path, ...]
    label_of: tuple[int, ...]
    """For each image the place of its class in `labels`."""


def load_image_folder(folder: Path, labels: Path | None = None) -> ImageFolder:
    """Each subfolder is a class; `labels` is a JSON object of folder names and their words.

    Raises:
        DataError: fewer than two classes, a class without images, or a folder without a label.
    """
    classes = sorted(path for path in folder.glob("*") if path.is_dir() and path.name[0] != ".")
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} subfolders; give one for each of the classes")
    words = {path.name: path.name.replace("_", " ") for path in classes}
    if labels is not None:
        words = _labels(labels, [path.name for path in classes])
    images: list[Path] = []
    label_of: list[int] = []
    for number, path in enumerate(classes):
        found = find_images(path).files
        if not found:
            raise DataError(f"{path} has no image; add some, or take the folder away")
        images += found
        label_of += [number] * len(found)
    if len(set(words.values())) < len(words):
        raise DataError(f"two classes of {folder} have one label; give each its own")
    return ImageFolder(
        folder.resolve().name,
        tuple(words[path.name] for path in classes),
        tuple(images),
        tuple(label_of),
    )


def _labels(path: Path, names: list[str]) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} is no JSON ({problem}); mend it") from None
    for name in names:
        if not isinstance(found, dict) or not isinstance(found.get(name), str):
            raise DataError(f"{path} has no label for {name!r}; add one")
    return {name: str(found[name]) for name in names}


def measure(
    encoder: Encoder,
    images: ImageFolder,
    *,
    template: str = TEMPLATE,
    max_pixels: int | None = None,
    draws: int = DRAWS,
    progress: bool = False,
) -> Findings:
    """Top-1 and top-5 accuracy, and the mean over classes; ties count against the model.

    Raises:
        UsageError: the template has no `{label}`, or the encoder takes no images or no texts.
        NotFiniteError, InputError: as the encoder.
    """
    if "{label}" not in template:
        raise UsageError(f"the template {template!r} has no {{label}}; put it where the class goes")
    texts = encoder.embed([template.replace("{label}", label) for label in images.labels])
    items = [Item(image=path) for path in images.images]
    vectors = encoder.embed(items, max_pixels=max_pixels, progress=progress)
    ranks = metrics.ranks(vectors @ texts.T, images.label_of)
    hits = (ranks == 1).astype(np.float64)
    each, classes = np.arange(len(hits)), np.asarray(images.label_of)
    by_class = np.bincount(classes, hits) / np.bincount(classes)
    scores = {"accuracy": share(hits, each, draws), "top5": share(ranks <= 5, each, draws)}
    scores["class_mean"] = share(by_class, np.arange(len(by_class)), draws)
    return {
        "benchmark": f"zero-shot-{images.name}",
        "benchmark_hash": content_hash(zip(images.labels, strict=True), images.images),
        "settings": {"template": template, "max_pixels": max_pixels, "draws": draws},
        "sizes": {"images": len(items), "classes": len(images.labels)},
        "missing": [],
        "scores": scores,
    }

"""Zero-shot classification on any folder of images: one subfolder per class.

Each class is worded as "A photo of a {label}." (paper section 6), and the image alone asks.
"""

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
from abc_embed.storage.json_files import read_json


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images by class."""

    name: str
    labels: tuple[str, ...]
    images: tuple[Path, ...]
    label_of: tuple[int, ...]
    """For each image the place of its class in `labels`."""


def load_image_folder(folder: Path, labels: Path | None = None) -> ImageFolder:
    """Each subfolder is a class; `labels` is a JSON object: a folder's name -> words for its class.

    Raises:
        DataError: fewer than two classes, a class without images, or a folder without a label.
    """
    classes = sorted(path for path in folder.glob("*") if path.is_dir() and path.name[0] != ".")
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} subfolders; give one for each of the classes")
    words = {path.name: path.name.replace("_", " ") for path in classes}
    if labels is not None:
        given = read_json(labels, error=DataError, mend="give an object: subfolder -> words")
        for name in words:
            if not isinstance(given.get(name), str):
                raise DataError(f"{labels} has no label for {name!r}; add one")
            words[name] = given[name]
    images: list[Path] = []
    label_of: list[int] = []
    for number, path in enumerate(classes):
        files = find_images(path)
        if not files:
            raise DataError(f"{path} has no image; add some, or take the folder away")
        images += files
        label_of += [number] * len(files)
    if len(set(words.values())) < len(words):
        raise DataError(f"two classes of {folder} have one label; give each its own")
    return ImageFolder(
        folder.resolve().name,
        tuple(words[path.name] for path in classes),
        tuple(images),
        tuple(label_of),
    )


def measure(
    encoder: Encoder,
    images: ImageFolder,
    *,
    template: str = TEMPLATE,
    max_pixels: int | None = None,
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
    scores = {"accuracy": share(hits, each), "top5": share(ranks <= 5, each)}
    scores["class_mean"] = share(by_class, np.arange(len(by_class)))
    return {
        "benchmark": f"zero-shot-{images.name}",
        "benchmark_hash": content_hash(zip(images.labels, strict=True), images.images),
        "settings": {"template": template, "max_pixels": max_pixels, "draws": DRAWS},
        "sizes": {"images": len(items), "classes": len(images.labels)},
        "missing": [],
        "scores": scores,
    }

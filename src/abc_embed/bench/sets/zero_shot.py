"""Zero-shot classification on any folder of images: one subfolder per class.

Each class is worded as "A photo of a {label}." (paper section 6), and the image alone asks.
"""

from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.bench.metrics import share
from abc_embed.bench.retrieval import Ranked, Retrieval, recall
from abc_embed.bench.sets.evaluation import EvaluationSet
from abc_embed.bench.sets.mmeb import TEMPLATE
from abc_embed.data.image_files import find_images
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item
from abc_embed.storage.json_files import read_json


def load_image_folder(
    folder: Path, labels: Path | None = None, *, template: str = TEMPLATE
) -> EvaluationSet:
    """Each subfolder is a class: top-1 and top-5 accuracy, and the mean over classes.

    Args:
        labels: a JSON object: a folder's name -> words for its class.
        template: how a class is worded.

    Raises:
        UsageError: the template has no `{label}`.
        DataError: fewer than two classes, a class without images, or a folder without a label.
    """
    if "{label}" not in template:
        raise UsageError(f"the template {template!r} has no {{label}}; put it where the class goes")
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
    named = [words[path.name] for path in classes]
    task = Retrieval(
        queries=[(Item(image=path),) for path in images],
        candidates=[(Item(text=template.replace("{label}", label)),) for label in named],
        golds=[(label,) for label in label_of],
        scores={"accuracy": recall(1), "top5": recall(5), "class_mean": _class_mean},
    )
    return EvaluationSet(
        benchmark=f"zero-shot-{folder.resolve().name}",
        tasks={"": task},
        rows=[(label,) for label in named],
        images=images,
        sizes={"images": len(images), "classes": len(named)},
        settings={"template": template},
    )


def _class_mean(ranked: Ranked) -> dict[str, Any]:
    """The mean over classes of each one's accuracy; classes are resampled."""
    classes = np.array([label for (label,) in ranked.task.golds])
    by_class = np.bincount(classes, ranked.ranks == 1) / np.bincount(classes)
    return share(by_class, range(len(by_class)))

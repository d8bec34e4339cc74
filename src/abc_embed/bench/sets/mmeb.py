"""MMEB v1's evaluation sets, in the hub's layout (`TIGER-Lab/MMEB-eval`) or a local copy of it.

Queries and candidates are worded as the paper does (section 6); images lie in a folder or in
`images.zip`. In the files the right candidate is first, so that a constant encoder would have
100 %: candidates are shuffled with a fixed seed, ties count against the model, and what is not
finite is an error.

    qry_text, qry_img_path     "<|image_1|>\\nRepresent the given image …", and a path or ""
    tgt_text, tgt_img_path     candidates, the right one first
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from abc_embed.bench.retrieval import Retrieval, recall
from abc_embed.bench.sets.evaluation import EvaluationSet, Findings
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item
from abc_embed.storage.parquet import import_pyarrow

IMAGE_MARK = "<|image_1|>"
VQA_PREFIX = "Represent the given image with the following question:"
"""MMEB's words before a question. The paper does not say whether they stay: an option, off."""
TEMPLATE = "A photo of a {label}."
"""How a class is worded (paper section 6)."""
SEED = 0

TaskKind = Literal["classification", "vqa", "retrieval", "grounding"]

PAPER: dict[str, tuple[TaskKind, float]] = {
    "ImageNet-1K": ("classification", 71.2),
    "HatefulMemes": ("classification", 52.1),
    "VOC2007": ("classification", 81.4),
    "SUN397": ("classification", 71.8),
    "Place365": ("classification", 40.7),
    "ImageNet-A": ("classification", 49.4),
    "ImageNet-R": ("classification", 86.8),
    "ObjectNet": ("classification", 67.7),
    "Country211": ("classification", 18.5),
    "OK-VQA": ("vqa", 48.1),
    "A-OKVQA": ("vqa", 37.3),
    "DocVQA": ("vqa", 28.5),
    "InfographicsVQA": ("vqa", 7.9),
    "ChartQA": ("vqa", 11.7),
    "Visual7W": ("vqa", 25.6),
    "ScienceQA": ("vqa", 26.3),
    "VizWiz": ("vqa", 29.4),
    "GQA": ("vqa", 60.1),
    "TextVQA": ("vqa", 35.4),
}
"""The sets that the paper reports -> kind, and ABC's accuracy in per cent."""

OTHER_SETS: dict[str, TaskKind] = {
    "N24News": "classification",
    **dict.fromkeys(
        (
            *("VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t"),
            *("NIGHTS", "WebQA", "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
        ),
        "retrieval",
    ),
    **dict.fromkeys(("MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"), "grounding"),
}
"""The other sets of MMEB v1, which the paper does not report."""

KINDS: dict[str, TaskKind] = {name: kind for name, (kind, _) in PAPER.items()} | OTHER_SETS


def tasks_in(folder: Path) -> list[str]:
    """Names of the known sets that a local copy holds.

    Raises:
        DataError: there is none.
    """
    names = [name for name in KINDS if any((folder / name).glob("*.parquet"))]
    if not names:
        raise DataError(
            f"{folder} holds no set of MMEB; give a copy of TIGER-Lab/MMEB-eval, with a folder of "
            "Parquet files for each set, and images/ or images.zip"
        )
    return names


def load_task(
    folder: Path, name: str, *, prefix: bool = False, seed: int = SEED, limit: int | None = None
) -> EvaluationSet:
    """One set of a local copy; `prefix` keeps MMEB's words before a question.

    Accuracy is the share of rows whose right candidate stands alone at the top. Of a row the
    candidates are shuffled, and equal ones are one.

    Raises:
        UsageError: no such set.
        DataError: a file is damaged, or a row is not of this kind: file, row, what is wrong.
        MissingExtraError: pyarrow is not installed.
    """
    if name not in KINDS:
        raise UsageError(f"{name!r} is no set of MMEB v1; it has {', '.join(KINDS)}")
    kind = KINDS[name]
    images = _Images(folder)
    numbers: dict[tuple[str, str], int] = {}
    candidates: list[Item] = []  # every distinct one of any row, once
    queries: list[Item] = []
    among: list[tuple[int, ...]] = []
    golds: list[tuple[int]] = []
    asked: list[object] = []
    for row, (place, values) in enumerate(_rows(folder / name, limit)):
        query, targets = _parse(place, values, kind, prefix)
        needed = [path for _, path in (query, *targets) if path]
        if any(images.get(path) is None for path in needed):
            continue
        distinct = list(dict.fromkeys(targets))  # in an order that does not tell the right one
        order = np.random.default_rng((seed, row)).permutation(len(distinct))
        shuffled = [distinct[place] for place in order]
        for target in shuffled:
            if target not in numbers:
                numbers[target] = len(candidates)
                candidates.append(images.item(place, *target))
        queries.append(images.item(place, *query))
        among.append(tuple(numbers[target] for target in shuffled))
        golds.append((numbers[targets[0]],))
        words = (queries[-1].text, queries[-1].instruction)
        asked.append((words, among[-1], shuffled.index(targets[0])))
    shown = {id(item.image): item.image for item in (*queries, *candidates)}
    task = Retrieval(
        queries=[(item,) for item in queries],
        candidates=[(item,) for item in candidates],
        golds=golds,
        among=among,
        scores={"accuracy": recall(1)},
    )
    return EvaluationSet(
        benchmark=f"mmeb-{name}",
        tasks={"": task},
        rows=[*asked, *((item.text, item.instruction) for item in candidates)],
        images=[image for image in shown.values() if isinstance(image, Path | bytes)],
        sizes={"queries": len(queries), "candidates": len(candidates)},
        settings={"prefix": prefix, "seed": seed, "limit": limit, "template": TEMPLATE},
        missing=images.missing,
    )


def table_rows(findings: Sequence[Findings]) -> list[tuple[str, str, str, str]]:
    """(set, rows, accuracy in %, the paper's); after each kind the mean over its sets.

    A mean says how many sets it stands on; the paper's is given only where all its sets are there.
    """
    by_name = {f["benchmark"].removeprefix("mmeb-"): f for f in findings}
    lines = []
    for kind in dict.fromkeys(KINDS.values()):
        names = [name for name in KINDS if KINDS[name] == kind and name in by_name]
        if not names:
            continue
        values = [100 * by_name[name]["scores"]["accuracy"]["value"] for name in names]
        for name, value in zip(names, values, strict=True):
            count = f"{by_name[name]['sizes']['queries']:,}"
            lines.append((name, count, f"{value:.1f}", _paper_mean([name])))
        in_paper = {name for name, (paper_kind, _) in PAPER.items() if paper_kind == kind}
        paper = _paper_mean(names) if set(names) == in_paper else ""
        lines.append((f"mean of {len(names)} ({kind})", "", f"{np.mean(values):.1f}", paper))
    return lines


def _paper_mean(names: Sequence[str]) -> str:
    known = [PAPER[name][1] for name in names if name in PAPER]
    return f"{sum(known) / len(known):.1f}" if known else ""


# -- the files -------------------------------------------------------------------------------------

Side = tuple[str, str]
"""Of a row its query or one candidate: words and path of an image, either may be empty."""


def _rows(folder: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    parquet = import_pyarrow().parquet
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise DataError(f"{folder} has no .parquet file; get the set again")
    rows: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        try:
            table = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as problem:
            raise DataError(f"{path} is damaged ({problem}); get the file again") from None
        rows += [(f"{path}: row {number}", values) for number, values in enumerate(table)]
    return rows[:limit]


def _parse(
    place: str, values: dict[str, Any], kind: TaskKind, prefix: bool
) -> tuple[Side, list[Side]]:
    """The query and the candidates, the right one first, worded as the paper has it."""
    try:
        words, path = str(values["qry_text"] or ""), str(values["qry_img_path"] or "")
        texts = [str(text or "") for text in values["tgt_text"]]
        paths = [str(p or "") for p in values.get("tgt_img_path") or [""] * len(texts)]
    except (KeyError, TypeError) as problem:
        raise DataError(f"{place} lacks {problem}; it is no row of MMEB's evaluation") from None
    if not texts or len(texts) != len(paths):
        raise DataError(f"{place} has {len(texts)} texts and {len(paths)} images as candidates")
    words = _without_mark(words)
    if kind == "classification":
        words = ""  # the image alone asks
        texts = [TEMPLATE.format(label=text) for text in texts]
    elif kind == "vqa" and not prefix:
        if not words.startswith(VQA_PREFIX):
            raise DataError(f"{place}: qry_text does not begin with {VQA_PREFIX!r}")
        words = words.removeprefix(VQA_PREFIX).strip()
    targets = [(_without_mark(text), p) for text, p in zip(texts, paths, strict=True)]
    return (words, path), targets


def _without_mark(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()


class _Images:
    """Paths of the rows -> files, or what `images.zip` holds of them."""

    def __init__(self, folder: Path) -> None:
        self._folders: tuple[Path | zipfile.Path, ...] = (folder / "images", folder)
        archive = folder / "images.zip"
        if archive.is_file() and not (folder / "images").is_dir():
            try:
                inside = zipfile.Path(archive)
            except (zipfile.BadZipFile, OSError) as problem:
                raise DataError(f"{archive} is damaged ({problem}); get the file again") from None
            self._folders = (inside, inside / "images")
        self._known: dict[str, Path | bytes | None] = {}

    @property
    def missing(self) -> list[str]:
        """Paths that were asked for and are not there."""
        return [path for path, image in self._known.items() if image is None]

    def get(self, path: str) -> Path | bytes | None:
        """The image; None if it is not there, or its path leads out of the folder."""
        if path not in self._known:
            parts, file = PurePosixPath(path), None
            if not parts.is_absolute() and ".." not in parts.parts:
                file = next((f / path for f in self._folders if (f / path).is_file()), None)
            self._known[path] = file.read_bytes() if isinstance(file, zipfile.Path) else file
        return self._known[path]

    def item(self, place: str, words: str, path: str) -> Item:
        """What a side of a row shows.

        Raises:
            DataError: it shows nothing.
        """
        if path:
            return Item(image=self.get(path), instruction=words or None)
        if not words:
            raise DataError(
                f"{place} has a side with neither words nor an image; get the set again"
            )
        return Item(text=words)

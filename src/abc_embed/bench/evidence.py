"""How good is the evidence? Maps of `Embedder.explain` on scenes, whose boxes are known.

Pointing: the peak lies in the box of the thing that the answer names, or within `TOLERANCE` of it.
Moving: it does for both questions of one picture, and for a picture and its mirror image.
Deletion and insertion: the mean cosine while tokens are hidden, or shown, strongest evidence first.
Beside the methods of `Embedder.explain` stand those of others that look at attention.
Controls: random maps, a model with random layers, the instruction of another scene.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from abc_embed.bench import attention_maps
from abc_embed.bench.ctrlbench.scene_benchmark import mirrored_questions
from abc_embed.bench.metrics import share
from abc_embed.explain import Evidence, Method, TokenProbe
from abc_embed.figures import BLUE, GREY, ORANGE, RED, draw_shares
from abc_embed.inputs import Item
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import Question, questions
from abc_embed.scenes.render import box, render
from abc_embed.storage.hashing import sha256_json

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

SEED = 7004
"""World of the scenes; training never sees it."""
SIDE = 224
"""Pixels of a scene's side."""
TOLERANCE = 15 / 224
"""How far outside the box a peak may lie, as a share of the side: the pointing game's 15 pixels."""
METHODS: tuple[Method, ...] = get_args(Method)
LABELS = {
    "pointing": "in the box",
    "moves_with_instruction": "moves with the instruction",
    "moves_in_mirror": "moves in the mirror image",
    "pointing_image_alone": "in the box, image alone",
}
"""Shares of a row -> what they are called for people."""
COLOURS = dict(zip(LABELS.values(), (BLUE, ORANGE, GREY, RED), strict=True))
"""Inches of a row of the figure."""
HEAD = ("", *LABELS.values(), "deletion", "insertion", "passes")

Case = tuple[Scene, Question]
"""A scene with a question about one of its things."""
Pair = tuple[Case, Case]
"""Two cases with different answers: the peak must move between them."""


def instruction_pairs(count: int) -> list[Pair]:
    """One picture, two questions about two different things; `count` scenes."""
    pairs: list[Pair] = []
    for number in range(count):
        scene = make_scene(SEED, number)
        rng = np.random.default_rng([SEED, number])
        asked = [q for q in questions(scene) if q.kind in ("place", "relation")]
        order = [asked[i] for i in rng.permutation(len(asked))]
        second = next((q for q in order[1:] if q.region != order[0].region), None)
        if second is not None:
            pairs.append(((scene, order[0]), (scene, second)))
    return pairs


def mirrored_pairs(count: int) -> list[Pair]:
    """A picture and its mirror image, one instruction whose answer changes; of `count` scenes."""
    pairs: list[Pair] = []
    for number in range(count):
        scene = make_scene(SEED, number)
        mirrored = scene.mirrored()
        of_scene: list[Pair] = [
            ((scene, before), (mirrored, after))
            for before, after in mirrored_questions(scene)
            if before.kind == after.kind == "place" and before.region != after.region
        ]
        pairs += of_scene[:1]
    return pairs


def measure(
    embedder: "Embedder",
    *,
    scenes: int = 200,
    methods: Sequence[Method] = METHODS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Every method and control on `scenes` scenes: shares with 95 % intervals, areas, cost.

    Raises:
        OutOfMemoryError: the model could not compute a batch.
    """
    asked, mirrored = instruction_pairs(scenes), mirrored_pairs(scenes)
    controls = ("random map", "random layers", "other instruction")
    names = (*methods, *attention_maps.METHODS, *controls)
    table: dict[str, Any] = {}
    for done, name in enumerate(names, 1):
        table[name] = _row(embedder, _explainer(embedder, name), asked, mirrored)
        on_progress(done, len(names))
    settings = {"seed": SEED, "scenes": scenes, "side": SIDE, "tolerance": round(TOLERANCE, 4)}
    return {
        "benchmark": "evidence",
        "benchmark_hash": sha256_json(settings),
        "settings": settings,
        "sizes": {"instruction_pairs": len(asked), "mirrored_pairs": len(mirrored)},
        "scores": table,
    }


def rows(record: Mapping[str, Any]) -> Sequence[tuple[object, ...]]:
    """Every method and control, for a table under `HEAD`."""

    def cell(share: Mapping[str, Any]) -> str:
        low, high = share["interval"]
        return f"{share['value']:.2f} ({low:.2f}–{high:.2f})"

    further = HEAD[1 + len(LABELS) :]
    return [
        (name, *(cell(row[key]) for key in LABELS), *(row[key] for key in further))
        for name, row in record["scores"].items()
    ]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Bars of every method and control, with their intervals."""
    title = "Where the peak of the evidence lies, on scenes whose boxes are known"
    draw_shares(record["scores"], LABELS, COLOURS, title, path, row_height=0.9)


Explainer = Callable[[Item, str, int], Evidence]
"""An item, the text of its answer and a number of its own -> evidence."""


def _explainer(embedder: "Embedder", name: str) -> Explainer:
    if name == "random layers":
        other = with_random_layers(embedder)
        return lambda item, answer, _: other.explain(item, embedder.embed(answer))

    def random_map(item: Item, answer: str, number: int) -> Evidence:
        shape = embedder.explain(item, answer, method="last_layer").contributions.shape
        values = np.random.default_rng([SEED, number]).random(shape, dtype=np.float32)
        return Evidence(values, "midpoint")

    def by_attention(item: Item, answer: str, number: int) -> Evidence:
        text = torch.from_numpy(embedder.embed(answer))
        with TokenProbe.of(embedder.model, embedder.processor, item, text) as probe:
            return Evidence(probe.on_grid(attention_maps.METHODS[name](probe)), "last_layer")

    def shuffled(item: Item, answer: str, number: int) -> Evidence:
        if item.instruction is not None:
            others = questions(make_scene(SEED + 1, number))
            first = np.random.default_rng([SEED, number]).permutation(len(others))[0]
            item = Item(image=item.image, instruction=others[first].instruction)
        return embedder.explain(item, answer)

    def by_method(item: Item, answer: str, number: int) -> Evidence:
        return embedder.explain(item, answer, method=name)  # type: ignore[arg-type]

    controls = {"random map": random_map, "other instruction": shuffled}
    attention = dict.fromkeys(attention_maps.METHODS, by_attention)
    return (controls | attention).get(name, by_method)


def with_random_layers(embedder: "Embedder") -> "Embedder":
    """The same model with every matrix of the language model's layers drawn anew, same spread."""
    from abc_embed.embedder import Embedder

    model = deepcopy(embedder.model)
    generator = torch.Generator().manual_seed(SEED)
    layers: nn.Module = model.backbone.vlm.language_model.layers
    with torch.no_grad():
        for parameter in layers.parameters():
            if parameter.ndim == 2:
                drawn = torch.randn(parameter.shape, generator=generator) * parameter.float().std()
                parameter.copy_(drawn.to(parameter))
    return Embedder(model, embedder.processor)


def _row(
    embedder: "Embedder", explain: Explainer, asked: Sequence[Pair], mirrored: Sequence[Pair]
) -> dict[str, Any]:
    started = time.process_time()
    hits = [_pair_hits(explain, pair, number) for number, pair in enumerate(asked)]
    seconds = (time.process_time() - started) / (2 * len(asked))
    moved = [all(_pair_hits(explain, pair, number)) for number, pair in enumerate(mirrored)]
    alone = [_alone_hit(explain, scene, n) for n, ((scene, _), _) in enumerate(asked)]
    areas = [_areas(embedder, explain, *first, n) for n, (first, _) in enumerate(asked)]
    deletion, insertion, whole = np.mean(areas, axis=0)
    return {
        "pointing": _by_scene([sum(pair) / 2 for pair in hits]),
        "moves_with_instruction": _by_scene([all(pair) for pair in hits]),
        "moves_in_mirror": _by_scene(moved),
        "pointing_image_alone": _by_scene(alone),
        "deletion": round(float(deletion), 4),
        "insertion": round(float(insertion), 4),
        "cosine": round(float(whole), 4),
        "passes": round(seconds / _pass_seconds(embedder, asked), 2),
    }


def _pair_hits(explain: Explainer, pair: Pair, number: int) -> tuple[bool, bool]:
    first, second = (
        _hit(explain(_item(scene, question), question.answer, 2 * number + side), scene, question)
        for side, (scene, question) in enumerate(pair)
    )
    return first, second


def _item(scene: Scene, question: Question) -> Item:
    return Item(image=np.asarray(render(scene, SIDE)), instruction=question.instruction)


def _hit(evidence: Evidence, scene: Scene, question: Question) -> bool:
    return question.region is not None and points_to(evidence, scene, question.region)


def points_to(evidence: Evidence, scene: Scene, region: int) -> bool:
    """Whether the peak lies in the box of thing number `region`, or within `TOLERANCE` of it."""
    left, top, width, height = (n / SIDE for n in box(scene.placed[region], SIDE, SIDE))
    x, y = evidence.peak
    across = left - TOLERANCE <= x <= left + width + TOLERANCE
    return across and top - TOLERANCE <= y <= top + height + TOLERANCE


def _alone_hit(explain: Explainer, scene: Scene, number: int) -> bool:
    region = number % len(scene.placed)
    item = Item(image=np.asarray(render(scene, SIDE)))
    return points_to(explain(item, scene.placed[region].thing.phrase, number), scene, region)


def _areas(
    embedder: "Embedder", explain: Explainer, scene: Scene, question: Question, number: int
) -> tuple[float, float, float]:
    """Mean cosine under deletion and under insertion, and that of the whole picture."""
    item = _item(scene, question)
    order = explain(item, question.answer, 2 * number).contributions.ravel().argsort()[::-1]
    text = torch.from_numpy(embedder.embed(question.answer))
    with TokenProbe.of(embedder.model, embedder.processor, item, text) as probe:
        return deletion_and_insertion(probe, torch.from_numpy(order.copy()))


def deletion_and_insertion(probe: TokenProbe, order: Tensor) -> tuple[float, float, float]:
    """Mean cosine while tokens are hidden in `order` `(V,)`, and while they are shown in it."""
    count = len(order)
    rank = torch.empty(count, dtype=torch.int64)
    rank[order] = torch.arange(count)
    steps = torch.arange(count + 1).unsqueeze(1)
    curves = []
    for shown in (rank >= steps, rank < steps):
        rows = torch.where(shown.unsqueeze(-1), probe.visual.cpu(), probe.mean.cpu())
        curves.append(probe.cosines(rows.flatten(0, 1).to(probe.visual)))
    deleted, inserted = (curve.mean().item() for curve in curves)
    return deleted, inserted, curves[0][0].item()


def _pass_seconds(embedder: "Embedder", asked: Sequence[Pair]) -> float:
    """Processor time of embedding one item, the picture prepared and encoded anew."""
    items = [_item(*first) for first, _ in asked[:40]]
    started = time.process_time()
    for item in items:
        embedder.embed(item)
    return (time.process_time() - started) / len(items)


def _by_scene(shares: Sequence[float]) -> dict[str, Any]:
    """A mean with its interval; each scene is a cluster of its own."""
    return share(shares, range(len(shares)))

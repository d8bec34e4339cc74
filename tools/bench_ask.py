"""Measure looking again with an instruction: tiers G and B, and scenes with mirror images.

    python tools/bench_ask.py --out results/search/ask.json --plot docs/images/ask.png

"Which image has a dog on the left?" over images that were embedded alone. The joint vectors of all
images are the direct answer; each method says which images are looked at, and the answer is ranked
by their joint vectors alone. An image that shows what is looked for, and of which it is in doubt
whether it is the answer, is in no ranking.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import Embedder, Item
from abc_embed.bench.ctrlbench import binding, grid
from abc_embed.figures import BLUE, GREY, INK, ORANGE, RED, legend_below, new_figure, save_figure
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import questions
from abc_embed.scenes.render import render
from abc_embed.scenes.things import THINGS
from abc_embed.search import cutoff
from abc_embed.search.detail import TEMPERATURE, best_part, by_turns, stream_detailed

SEED, SIDE, TEXTS = 990, 112, 40
"""World of the mirrored scenes; pixels a side; things that are asked for with each instruction."""
PLACES = ("what is on the left?", "what is on the right?")
BUDGETS: tuple[float | int, ...] = (0.05, 0.1, 0.2, 200)
"""Shares of the images, and a number of passes."""
INSTRUCTIONS = {
    "tier G": [f"what is the {kind}?" for kind in ("animal", "food", "tool", "vehicle", "device")],
    "tier B": [
        *PLACES,
        "what is at the top?",
        "what is at the bottom?",
        "what is the largest thing?",
        "what is the smallest thing?",
    ],
    "mirrored": list(PLACES),
}
COLOURS = {
    "vectors alone": GREY,
    "best part": ORANGE,
    "by turns": "#7f7f00",
    "by turns, weighed": BLUE,
    "parts like those found": "#2ca02c",
    "ridge map": RED,
    "best answers so far": INK,
}
"""Methods: closest by the images' own vectors; by the best of their parts; by turns; by turns with
both weighed against everyday things, as `ask` does; and three that learn from what they look at: in
two rounds the parts that were right, in four a map, and likeness to the best answers."""


@dataclass(frozen=True)
class World:
    """Images and what is true of them."""

    name: str
    scenes: Sequence[Scene]

    def answers(self, instruction: str) -> list[str]:
        """Of each image, or "" where there is none beyond doubt."""
        asked = [{q.instruction: q.answer for q in questions(scene)} for scene in self.scenes]
        return [answers.get(instruction, "") for answers in asked]


@dataclass(frozen=True)
class Case:
    """One question: a text and an instruction over a world."""

    images: Any
    """`(N, D)` vectors of the images alone."""
    parts: Any
    """`(N,)`: the cosine of each image's best part."""
    weighed: tuple[Any, Any]
    """`(N,)` each: best part and whole, weighed against everyday things."""
    details: Any
    """`(N, C, D)` at unit length."""
    joint: Any
    """`(N, D)` with the instruction."""
    text: Any
    """`(D,)`"""
    relevant: set[int]
    doubtful: set[int]

    def precision(self, seen: Sequence[int], scores: Any) -> float:
        """Average precision of what was seen; what was not counts as missed."""
        order = sorted(seen, key=lambda number: -scores[number])
        return average_precision([n for n in order if n not in self.doubtful], self.relevant)


def worlds(limit: int | None) -> Iterator[World]:
    """The three, or the first images of each."""
    originals = [make_scene(SEED, number) for number in range(200)]
    both = [scene for original in originals for scene in (original, original.mirrored())]
    for name, benchmark in (("tier G", grid.generate()), ("tier B", binding.generate())):
        yield World(name, [image.scene for image in benchmark.images][:limit])
    yield World("mirrored", both[:limit])


def cases(embedder: Embedder, world: World, texts: dict[str, Any]) -> Iterator[Case]:
    """All questions of a world."""
    pictures = [render(scene, SIDE) for scene in world.scenes]
    made = [
        pair
        for pair in stream_detailed(embedder, [Item(image=picture) for picture in pictures])
        if isinstance(pair, tuple)
    ]
    images, details = np.stack([p[0] for p in made]), np.stack([p[1] for p in made])
    bank = np.stack(list(texts.values()))
    unit = details / np.linalg.norm(details.astype(np.float32), axis=2, keepdims=True)
    shown = [{placed.thing.phrase for placed in scene.placed} for scene in world.scenes]
    instructions = INSTRUCTIONS[world.name]
    items = [Item(image=p, instruction=words) for p in pictures for words in instructions]
    joint = embedder.embed(items).reshape(len(pictures), len(instructions), -1)
    for number, instruction in enumerate(instructions):
        answers = world.answers(instruction)
        wanted = [answer for answer in dict.fromkeys(answers) if answer in texts]
        for phrase in wanted[:TEXTS]:
            known = enumerate(zip(answers, shown, strict=True))
            doubtful = {n for n, (answer, things) in known if not answer and phrase in things}
            relevant = {n for n, answer in enumerate(answers) if answer == phrase}
            text = texts[phrase]
            weighed = (
                best_part(details, text, bank),
                cutoff.score(text, images, bank, TEMPERATURE),
            )
            parts = best_part(details, text)
            yield Case(images, parts, weighed, unit, joint[:, number], text, relevant, doubtful)


# -- methods -------------------------------------------------------------------------------------


def in_rounds(
    case: Case, passes: int, guess: Callable[[list[int]], Any], rounds: int = 4
) -> list[int]:
    """Images looked at in rounds; `guess` gives `(N,)` scores from the numbers of those seen."""
    seen: list[int] = []
    for turn in range(rounds):
        guesses = guess(seen).copy()
        guesses[seen] = -np.inf
        step = -(-(passes - len(seen)) // (rounds - turn))
        seen += np.argsort(-guesses)[:step].tolist()
    return seen


def mapped(case: Case, seen: Sequence[int], ridge: float = 5.0) -> Any:
    """Guessed scores, by a ridge map towards the identity from image vectors to joint vectors."""
    if not seen:
        return case.images @ case.text
    known = case.images[seen]
    gram = known @ known.T + ridge * np.eye(len(seen))
    change = np.linalg.solve(gram, case.joint[seen] - known)
    guesses = case.images + (case.images @ known.T) @ change
    return (guesses / np.linalg.norm(guesses, axis=1, keepdims=True)) @ case.text


def like_the_best(case: Case, seen: Sequence[int], best: int = 3) -> Any:
    """Scores by parts, and by likeness to the images that answered best so far."""
    scores = case.images @ case.text + case.parts
    if not seen:
        return scores
    known = sorted(seen, key=lambda number: -float(case.joint[number] @ case.text))[:best]
    return scores + case.images @ case.images[known].mean(axis=0)


def like_found_parts(case: Case, seen: Sequence[int], best: int = 3) -> Any:
    """By turns, weighed; then by likeness to the parts that the best answers were found by."""
    order = by_turns(*case.weighed)
    scores = np.empty(len(order))
    scores[order] = -np.arange(len(order))  # the order as scores
    if not seen:
        return scores
    answers = case.joint @ case.text
    known = sorted(seen, key=lambda number: -float(answers[number]))[:best]
    parts = [case.details[n][np.argmax(case.details[n] @ case.text)] for n in known]
    shares = np.exp((answers[known] - answers[known].max()) / 0.05)
    return (case.details @ (shares @ np.stack(parts))).max(axis=1)


def looked_at(method: str, case: Case, passes: int) -> list[int]:
    """Numbers of the images that a method looks at."""
    if method == "ridge map":
        return in_rounds(case, passes, lambda seen: mapped(case, seen))
    if method == "best answers so far":
        return in_rounds(case, passes, lambda seen: like_the_best(case, seen))
    if method == "parts like those found":
        return in_rounds(case, passes, lambda seen: like_found_parts(case, seen), rounds=2)
    wholes = case.images @ case.text
    order = {
        "vectors alone": lambda: np.argsort(-wholes),
        "best part": lambda: np.argsort(-case.parts),
        "by turns": lambda: by_turns(case.parts, wholes),
        "by turns, weighed": lambda: by_turns(*case.weighed),
    }[method]()
    chosen: list[int] = order[:passes].tolist()
    return chosen


# -- the record ----------------------------------------------------------------------------------


def average_precision(ranking: Sequence[int], relevant: set[int]) -> float:
    """Of a ranking that may leave out some of the relevant."""
    hits, total = 0, 0.0
    for rank, number in enumerate(ranking, 1):
        if number in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant)


def measure(asked: Sequence[Case]) -> dict[str, Any]:
    """mAP of the direct answer, without any pass, and of every method and budget."""
    count = len(asked[0].images)
    everything = range(count)
    joint = [case.joint @ case.text for case in asked]
    pairs = list(zip(asked, joint, strict=True))
    direct = float(np.mean([case.precision(everything, scores) for case, scores in pairs]))
    wholes = [case.precision(everything, case.images @ case.text) for case in asked]
    parts = [case.precision(everything, case.parts) for case in asked]
    no_pass = {"vectors alone": wholes, "best part": parts}
    methods = {}
    for method in COLOURS:
        found = {}
        for budget in BUDGETS:
            passes = min(count, budget if isinstance(budget, int) else -int(-budget * count // 1))
            values = [case.precision(looked_at(method, case, passes), s) for case, s in pairs]
            found[str(budget)] = row(values, direct) | {"passes": passes}
        methods[method] = found
    return {
        "images": count,
        "questions": len(asked),
        "direct_map": round(direct, 4),
        "no_pass": {name: row(values, direct) for name, values in no_pass.items()},
        "methods": methods,
    }


def row(values: Sequence[float], direct: float) -> dict[str, float]:
    """A mean, and its share of the direct answer's."""
    mean = float(np.mean(values))
    return {"map": round(mean, 4), "of_direct_map": round(mean / direct, 4)}


def table(record: dict[str, Any]) -> str:
    """The record for people, as Markdown."""
    lines = ["| looked at | 0 | 5 % | 10 % | 20 % | 200 images |", "| --- |" + " --- |" * 5]
    for name, world in record["worlds"].items():
        lines.append(f"| **{name}**, direct mAP {world['direct_map']:.3f} | | | | | |")
        for method, found in world["methods"].items():
            free = world["no_pass"].get(method)
            cells = ["" if free is None else f"{free['of_direct_map']:.2f}"]
            cells += [f"{found[str(budget)]['of_direct_map']:.2f}" for budget in BUDGETS]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """The share of the direct answer by the share looked at: a panel a world, a line a method."""
    panels = record["worlds"]
    figure = new_figure(4 * len(panels), 3.6)
    for number, (name, world) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for method, colour in COLOURS.items():
            points = world["methods"][method].values()
            shares = sorted((p["passes"] / world["images"], p["of_direct_map"]) for p in points)
            x, y = zip(*shares, (1.0, 1.0), strict=True)
            axes.plot(x, y, color=colour, label=method, marker="o", markersize=3, linewidth=1.3)
        axes.axhline(0.9, color="#444444", linewidth=0.8, linestyle=":")
        axes.set_title(f"{name}: {world['images']} images, {world['questions']} questions")
        axes.set_xlabel("share of the images looked at again")
        axes.set_xscale("log")
        axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1], ["5 %", "10 %", "20 %", "50 %", "all"])
        axes.minorticks_off()
        axes.set_ylim(0.5, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of the direct mAP")
    legend_below(figure, columns=len(COLOURS), fontsize=9)
    save_figure(figure, path, dpi=130)


def main() -> None:
    """Embed, look, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--limit", type=int, help="only so many images of each world")
    options = parser.parse_args()
    embedder = Embedder.from_pretrained("bundled", device="cpu")
    names = [thing.phrase for thing in THINGS]
    texts = dict(zip(names, embedder.embed(names), strict=True))
    record: dict[str, Any] = {"model": embedder.fingerprint, "worlds": {}}
    for world in worlds(options.limit):
        record["worlds"][world.name] = measure(list(cases(embedder, world, texts)))
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table(record))
    if options.plot is not None:
        draw(record, options.plot)


if __name__ == "__main__":
    main()

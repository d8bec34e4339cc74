"""Scenes drawn per second on one core, from seed to pixels with all questions; not a timed test.

    python tools/bench_scenes_speed.py            200 scenes to warm up, then 2,000 at 112 px
    python tools/bench_scenes_speed.py 500 224    500 scenes at 224 px

Prints processor time, which other work on the machine hardly changes, and wall time beside it. The
target is 300 scenes a second at 112 px.
"""

import sys
import time

from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import caption, questions
from abc_embed.scenes.render import render

WORLD = 99
WARM_UP = 200


def draw(first: int, count: int, side: int) -> None:
    """What a training step needs of each scene."""
    for index in range(first, first + count):
        scene = make_scene(WORLD, index)
        questions(scene)
        caption(scene)
        render(scene, side)


def main(count: int = 2000, side: int = 112) -> None:
    draw(0, WARM_UP, side)  # opens the sprites and shrinks the commonest sizes
    wall, core = time.perf_counter(), time.process_time()
    draw(WARM_UP, count, side)
    wall, core = time.perf_counter() - wall, time.process_time() - core
    print(f"{count / core:,.0f} scenes/s of processor time, {count / wall:,.0f} of wall time")
    print(f"({count:,} scenes with questions, captions and pictures of {side} px, one process)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""The generated world: named things on a coloured ground, and all that can be asked about them.

Scenes are made by NumPy and Pillow alone, from a seed.
"""

from abc_embed.scenes.layout import Placed, Scene, make_scene
from abc_embed.scenes.questions import Question, caption, hard_captions, questions
from abc_embed.scenes.render import render, which_thing
from abc_embed.scenes.things import BACKGROUNDS, THINGS, Thing

__all__ = [
    "BACKGROUNDS",
    "THINGS",
    "Placed",
    "Question",
    "Scene",
    "Thing",
    "caption",
    "hard_captions",
    "make_scene",
    "questions",
    "render",
    "which_thing",
]

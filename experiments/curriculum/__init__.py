"""How the bundled backbone learns the generated world, before stages 1 and 2 of the paper.

A small VLM trained contrastively from nothing hardly moves, so it learns in five lessons
(docs/bundled.md has the measurements): things (vision on pictures of one thing), places (vision on
whole scenes, every visual token), asking (the language model on exact visual tokens, answers as
candidates), looking (the language model on what vision really says), together (both, in a wider
world).
"""

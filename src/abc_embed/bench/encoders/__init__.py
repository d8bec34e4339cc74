"""One file per kind of model that a benchmark can measure; `bench.encoder` chooses by name.

base.py                   the protocol, and what all of them share
ours.py                   an `Embedder`
late.py                   image vector + text vector of another encoder
random.py                 chance
cached.py                 any of them, remembered by content
sentence_transformers.py  any model of that library
open_clip.py              any model of that library
"""

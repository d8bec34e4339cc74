"""Backbones beyond Qwen2-VL, one file each, as `LAZY_REGISTRY` in backbone.py lists them.

Does: nothing by itself; a file here is imported when a checkpoint of its family is asked for.
Does not: matter to anyone who uses Qwen2-VL, which is in backbone.py, to be read on the way.
"""

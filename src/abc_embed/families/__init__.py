"""Backbones beyond Qwen2-VL, one file each, as `LAZY_REGISTRY` in backbone.py lists them."""

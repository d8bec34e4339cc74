"""Backbones beyond Qwen2-VL: one file each, named after the `model_type` of its checkpoints."""

"""Evaluations of others, in their published layouts: COCO and Flickr30K, MMEB, image folders.

Reading order: found (what each gives), karpathy and retrieval (captions of images, both ways),
positives (further right pairs for COCO), mmeb, zero_shot, sweep (any of them at several
resolutions). Does not: fetch images, or load a model.
"""

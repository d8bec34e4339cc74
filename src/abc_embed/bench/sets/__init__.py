"""Evaluations of others, in their published layouts: COCO and Flickr30K, MMEB, image folders."""

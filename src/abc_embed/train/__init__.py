"""Training: stage 1 (image to caption) and stage 2 (image and instruction to answer)."""

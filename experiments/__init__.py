"""Experiments beside the package: how the bundled model was made, and the paper in miniature."""

"""Data sets on disk: records, the forms they are read and written in, and the published sets."""

from abc_embed.data.dataset import Dataset, Rejected, Row
from abc_embed.data.formats import open_dataset

__all__ = ["Dataset", "Rejected", "Row", "open_dataset"]

"""Vectors laid out in the plane: principal components, or UMAP where it is installed.

Each instruction has its own plane, the one in which its vectors differ most. It is turned and
mirrored, and nothing else, so that its points lie as close as they can to where the pictures alone
lie: what moves from one instruction to the next is then the pictures, not the axes.

Shapes: `N` images, `C` candidate texts, `D` width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import RequestError

Points = NDArray[np.float64]
"""`(N, 2)`"""
TEMPERATURE = 0.05
"""Of the softmax over the candidate texts that says how sure the nearest one is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each image lies, and which text it is nearest to."""

    places: Points
    nearest: NDArray[np.int64]
    """`(N,)`, indices of texts."""
    scores: NDArray[np.float32]
    """`(N,)`, cosines with these."""
    shares: NDArray[np.float32]
    """`(N,)`: how sure, the nearest text's part of the softmax over all."""
    variance: float | None
    """Part of the variance that the plane shows; None where that says nothing."""

    def points(self) -> Iterator[dict[str, Any]]:
        """One JSON object an image."""
        for (x, y), text, score, share in zip(
            self.places.tolist(),
            self.nearest.tolist(),
            self.scores.tolist(),
            self.shares.tolist(),
            strict=True,
        ):
            yield {
                "x": round(x, 4),
                "y": round(y, 4),
                "text": text,
                "score": round(score, 4),
                "share": round(share, 4),
            }


def lay_out(
    vectors: NDArray[np.float32],
    alone: NDArray[np.float32],
    candidates: NDArray[np.float32],
    method: str = "pca",
) -> Layout:
    """Images in the plane, within -1 to 1 on both axes.

    Args:
        vectors: `(N, D)`, what is laid out.
        alone: `(N, D)`, the same pictures without instruction.
        candidates: `(C, D)`, the texts.
        method: pca or umap.

    Raises:
        RequestError: UMAP is not installed.
    """
    reference, _ = _pca(alone)
    variance: float | None = None
    if method == "umap":
        places = _umap(vectors, reference)
    else:
        places, variance = _pca(vectors)
    places = _turned(places, reference)
    places = places / (np.abs(places).max() or 1.0)
    scores = vectors @ candidates.T
    nearest = scores.argmax(axis=1)
    logits = (scores - scores.max(axis=1, keepdims=True)) / TEMPERATURE
    shares = 1.0 / np.exp(logits).sum(axis=1)
    return Layout(places, nearest, scores.max(axis=1), shares.astype(np.float32), variance)


def _pca(vectors: NDArray[np.float32]) -> tuple[Points, float]:
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    return left[:, :2] * sizes[:2], float((sizes[:2] ** 2).sum()) / (total or 1.0)


def _umap(vectors: NDArray[np.float32], start: Points) -> Points:
    try:
        import umap
    except ImportError:
        raise RequestError(
            "the layout umap needs an optional package on the server; run there: "
            "pip install 'abc-embed[umap]', or use pca",
            "layout",
        ) from None
    reducer = umap.UMAP(
        n_neighbors=min(15, len(vectors) - 1),
        metric="cosine",
        init=start / (np.abs(start).max() or 1.0) * 10,
        random_state=0,
        n_jobs=1,
    )
    return np.asarray(reducer.fit_transform(vectors), dtype=np.float64)


def _turned(points: Points, reference: Points) -> Points:
    """The rotation or reflection of `points` that comes closest to `reference` (Procrustes)."""
    points = points - points.mean(axis=0)
    left, _, right = np.linalg.svd(points.T @ (reference - reference.mean(axis=0)))
    return np.asarray(points @ left @ right)

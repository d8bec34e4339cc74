"""Is a picture unlike those that a model learnt from? A distance to them, not a guess.

What is compared is the state of the vision encoder's middle layer, mean and spread over the
patches: textures are told apart there, which its last layer no longer does (Lee et al., arXiv
1807.03888). The distance is Mahalanobis' in the directions in which known pictures differ most, and
Euclidean in all others, each in units of what known pictures have.

Shapes: `P` patches of a picture, `W` width of the vision encoder, `F = 2 W`, `K` directions.
"""

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

DIRECTIONS = 8
FOLDS = 5
LIMIT_QUANTILE = 0.995
"""Of known pictures, each measured by the others, so many are within the limit."""
FAR_SHARE = 0.1
"""Of the pictures seen, at which it is said that they are unlike: a few of thousands are chance."""
FEWEST = 100
"""Pictures that a limit can be taken from."""


@dataclass(frozen=True, slots=True)
class KnownPictures:
    """What pictures that a model knows have in common."""

    mean: Array
    """`(F,)`."""
    axes: Array
    """`(K, F)`, orthonormal."""
    variances: Array
    """`(K,)` along the axes, then that of any other direction `(1,)`."""
    limit: float
    """Distance beyond which a picture is unlike them."""

    @classmethod
    def of(cls, features: Array) -> Self:
        """Of `(N, F)` as `patch_statistics` gives them.

        Raises:
            UsageError: they are too few, or all the same.
        """
        if len(features) < FEWEST:
            raise UsageError(f"{len(features)} pictures are too few to know; give {FEWEST} or more")
        fold = np.arange(len(features)) % FOLDS
        held_out = [
            cls._fit(features[fold != part], 0.0).distances(features[fold == part])
            for part in range(FOLDS)
        ]
        return cls._fit(features, float(np.quantile(np.concatenate(held_out), LIMIT_QUANTILE)))

    @classmethod
    def _fit(cls, features: Array, limit: float) -> Self:
        mean = features.mean(0)
        _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
        variances = spread**2 / (len(features) - 1)
        others = variances[DIRECTIONS:].sum() / (features.shape[1] - DIRECTIONS)
        kept = np.append(variances[:DIRECTIONS], others)
        if not (np.isfinite(kept) & (kept > 0)).all():
            raise UsageError("the pictures are all the same; give different ones")
        return cls(mean, axes[:DIRECTIONS], kept, limit)

    def distances(self, features: Array) -> Array:
        """`(N, F)` -> `(N,)`; about 1 for a known picture."""
        centred = features - self.mean
        along = centred @ self.axes.T
        others = (centred**2).sum(-1) - (along**2).sum(-1)
        total = (along**2 / self.variances[:-1]).sum(-1) + others / self.variances[-1]
        distances: Array = np.sqrt(np.maximum(total, 0) / features.shape[-1])
        return distances

    def as_json(self) -> dict[str, object]:
        """Values for JSON: arrays as float32 in base64, as JSON would be three times as long."""
        arrays = {"mean": self.mean, "axes": self.axes, "variances": self.variances}
        coded = {
            name: base64.b64encode(array.astype("<f4").tobytes()).decode()
            for name, array in arrays.items()
        }
        return {**coded, "limit": self.limit}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `as_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        mean, axes, variances = (
            np.frombuffer(base64.b64decode(values[name], validate=True), "<f4").astype(np.float64)
            for name in ("mean", "axes", "variances")
        )
        known = cls(mean, axes.reshape(len(variances) - 1, len(mean)), variances, values["limit"])
        sound = all(np.isfinite(array).all() for array in (mean, axes, variances))
        if not (sound and (variances > 0).all() and type(known.limit) is float and known.limit > 0):
            raise ValueError("values that cannot be")
        return known


class NoveltyNotice:
    """Says once of a model that pictures are unlike those that it knows."""

    def __init__(self) -> None:
        self.given = False
        self._far = self._seen = 0

    def look(self, distances: Array, known: KnownPictures) -> None:
        """Take in the pictures of a batch; one that is alone, or a share of many, is enough."""
        self._seen += len(distances)
        self._far += int((distances > known.limit).sum())
        if self._far < FAR_SHARE * self._seen or not self._far or self.given:
            return
        self.given = True
        logger.warning(
            "%d of %d pictures so far are unlike those that this model learnt from (distance %.1f; "
            "of %g %% of its own at most %.1f): what their vectors say is of little worth; a model "
            "that knows photos is TIGER-Lab/ABC-Qwen2VL-Instruct",
            self._far,
            self._seen,
            float(distances.max()),
            100 * LIMIT_QUANTILE,
            known.limit,
        )


@contextmanager
def watch(layer: "nn.Module") -> Iterator[list["Tensor"]]:
    """What a layer gives while the block runs, call by call."""
    states: list[Tensor] = []

    def keep(_: object, __: object, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = layer.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def patch_statistics(states: "Tensor", patches: Sequence[int]) -> Array:
    """`(sum P, W)` of pictures with so many patches each -> `(N, F)`: means, then spreads."""
    parts = np.split(states.float().cpu().numpy().astype(np.float64), np.cumsum(patches)[:-1])
    return np.stack([np.concatenate([part.mean(0), part.std(0)]) for part in parts])

"""One task of a benchmark: queries that choose among candidates, and what is counted of them.

`rank_tasks` embeds all tasks of a set in one call. Ties count against the model, and what is not
finite is an error, not a score.

Shapes: `Q` queries, `K` candidates, `D` width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from abc_embed.bench.encoders.base import Encoder, Parts, Vectors
from abc_embed.bench.metrics import Ints, rank_vectors, share
from abc_embed.inputs import Kind


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Queries, the candidates that they choose among, and the scores that are taken."""

    queries: Sequence[Parts]
    """`Q`."""
    candidates: Sequence[Parts]
    """`K`."""
    golds: Sequence[Sequence[int]]
    """`(Q,)`: numbers of a query's right candidates."""
    among: Sequence[Sequence[int] | None] | None = None
    """`(Q,)`: numbers of the candidates that a query chooses from; None: all."""
    clusters: Sequence[int] | None = None
    """`(Q,)`: the image of a query, with which it is resampled; None: each for itself."""
    kinds: Sequence[str] = ()
    """`(Q,)`: what is asked for, where R@1 of each kind is a score too."""
    scores: "Mapping[str, Metric]" = field(default_factory=dict)
    """Name of a score -> what it is."""
    optional: bool = False
    """Whether it is left out for a model that does not take its queries."""


@dataclass(frozen=True)
class Ranked:
    """A task that a model has done: what a score is taken of."""

    task: Retrieval
    queries: Vectors
    """`(Q, D)`."""
    candidates: Vectors
    """`(K, D)`."""
    ranks: Ints
    """`(Q,)`: of the best right candidate, from 1."""

    @property
    def clusters(self) -> Sequence[int]:
        """`(Q,)`."""
        return range(len(self.ranks)) if self.task.clusters is None else self.task.clusters

    def share(self, values: ArrayLike) -> dict[str, Any]:
        """The mean of values `(Q,)` with its interval, as `metrics.share`."""
        return share(values, self.clusters)


Metric = Callable[[Ranked], dict[str, Any]]
"""A score with its interval, as `metrics.share` gives one."""


def recall(k: int) -> Metric:
    """R@k: the share of queries with a right candidate among the first `k`."""
    return lambda ranked: ranked.share(ranked.ranks <= k)


RECALLS = {f"r{k}": recall(k) for k in (1, 5, 10)}


def _kinds(queries: Sequence[Parts]) -> set[Kind]:
    return {item.kind for parts in queries for item in parts}


def rank_tasks(encoder: Encoder, tasks: Mapping[str, Retrieval]) -> dict[str, Ranked]:
    """The tasks that a model takes, done; by their names.

    Raises:
        UsageError: it does not take one that is not optional.
        NotFiniteError, InputError: as the encoder.
    """
    taken = {
        name: task
        for name, task in tasks.items()
        if not (task.optional and _kinds(task.queries) - encoder.supported_kinds)
    }
    groups = {f"{name} queries": task.queries for name, task in taken.items()}
    groups |= {f"{name} candidates": task.candidates for name, task in taken.items()}
    vectors = encoder.embed_sums(groups)
    ranked = {}
    for name, task in taken.items():
        queries, candidates = vectors[f"{name} queries"], vectors[f"{name} candidates"]
        ranks = rank_vectors(queries, candidates, task.golds, task.among)
        ranked[name] = Ranked(task, queries, candidates, ranks)
    return ranked

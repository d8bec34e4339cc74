"""The contrastive loss of both stages: each query among every candidate of the batch.

Cosines over the temperature, cross-entropy with label smoothing (paper sections 4 and 5). The same
lines serve a plain step, a chunked one (`gradcache`) and, with gathered candidates, several
processes.

Shapes: `Q` queries, `C` candidates (all texts of the batch, the right ones among them), `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from abc_embed.errors import TrainingError


def contrastive_loss(
    query: Tensor,
    candidates: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each query's scores over all candidates, and the share ranked first.

    Everything is computed in float32 whatever comes in: scores of ±30 lose two digits in bfloat16.

    Args:
        query: `(Q, D)`, of unit length.
        candidates: `(C, D)`, of unit length.
        positives: `(Q,)` int64, the right candidate of each query.
        temperature: Scores are `cosine / temperature`: the smaller, the sharper.
        label_smoothing: Share of the target spread evenly over all candidates (paper section 4).

    Returns:
        The loss, a scalar that carries gradients, and the accuracy, a scalar that does not. A tie
        with the right candidate counts as wrong, so a model that gives every text one and the same
        vector scores 0, not by luck of the order.

    Raises:
        TrainingError: the shapes do not belong together.
    """
    _check_shapes(query, candidates, positives)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ candidates.float().T / temperature  # (Q, C)
        loss = F.cross_entropy(scores, positives, label_smoothing=label_smoothing)
    return loss, _accuracy(scores.detach(), positives)


def _accuracy(scores: Tensor, positives: Tensor) -> Tensor:
    """Share of rows of `(Q, C)` scores whose right candidate beats every other one."""
    right = scores.gather(1, positives[:, None])  # (Q, 1)
    at_least_as_good = (scores >= right).sum(dim=1)  # the right one itself is always counted
    return (at_least_as_good == 1).float().mean()


def _check_shapes(query: Tensor, candidates: Tensor, positives: Tensor) -> None:
    if query.ndim != 2 or candidates.ndim != 2 or query.shape[1] != candidates.shape[1]:
        raise TrainingError(
            "the loss needs queries (Q, D) and candidates (C, D) of one width, "
            f"not {tuple(query.shape)} and {tuple(candidates.shape)}"
        )
    if positives.shape != (query.shape[0],) or positives.dtype != torch.int64:
        raise TrainingError(
            f"the loss needs one int64 position of the right candidate for each of the "
            f"{query.shape[0]} queries, not {tuple(positives.shape)} of {positives.dtype}"
        )

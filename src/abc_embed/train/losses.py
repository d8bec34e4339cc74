"""The contrastive loss of both stages: each query among every candidate of the batch.

Cosines over the temperature, cross-entropy with label smoothing (paper sections 4 and 5). The same
lines serve a plain step, a chunked one (`gradcache`) and, with gathered candidates, several
processes.

Shapes: `Q` queries, `C` candidates (all texts of the batch, the right ones among them), `D` width.
"""

from collections.abc import Sequence

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
    *,
    excluded: Tensor | None = None,
    matryoshka: Sequence[int] = (),
    quantization: str = "none",
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each query's scores over all candidates, and the share ranked first.

    Everything is computed in float32 whatever comes in: scores of ±30 lose two digits in bfloat16.

    Args:
        query: `(Q, D)`, of unit length.
        candidates: `(C, D)`, of unit length.
        positives: `(Q,)` int64, the right candidate of each query.
        temperature: Scores are `cosine / temperature`: the smaller, the sharper.
        label_smoothing: Share of the target spread evenly over all candidates (paper section 4).
        excluded: `(Q, C)` bool, never the right ones: candidates that a query is not scored
            against, since they are right for it too; None for none.
        matryoshka: Narrower widths at which the vectors are to work as well: the loss is the mean
            over `D` and these, each cut and at unit length again (arXiv 2205.13147).
        quantization: "int8" or "binary": the loss is taken of rounded vectors too, each width's
            mean with that of the exact ones; see `fake_quantize`.

    Returns:
        The loss, a scalar that carries gradients, and the accuracy, a scalar that does not. A tie
        with the right candidate counts as wrong, so a model that gives every text one and the same
        vector scores 0, not by luck of the order.

    Raises:
        TrainingError: the shapes do not belong together.
    """
    _check_shapes(query, candidates, positives)
    with torch.autocast(query.device.type, enabled=False):
        exact = (query.float(), candidates.float())
        every = [exact, *_variants(exact, matryoshka, quantization)]
        scores = [one @ other.T / temperature for one, other in every]  # (Q, C) each
        if excluded is None:
            losses = [
                F.cross_entropy(of, positives, label_smoothing=label_smoothing) for of in scores
            ]
        else:
            out = excluded.to(scores[0].device)
            scores = [of.masked_fill(out, -torch.inf) for of in scores]
            losses = [_masked_cross_entropy(of, positives, label_smoothing) for of in scores]
    return torch.stack(losses).mean(), _accuracy(scores[0].detach(), positives)


def _variants(
    exact: tuple[Tensor, Tensor], matryoshka: Sequence[int], quantization: str
) -> list[tuple[Tensor, Tensor]]:
    """Query and candidates cut to each width, then all widths rounded."""
    cut = [
        (F.normalize(exact[0][:, :width], dim=-1), F.normalize(exact[1][:, :width], dim=-1))
        for width in matryoshka
    ]
    if quantization == "none":
        return cut
    rounded = [
        (fake_quantize(query, quantization), fake_quantize(candidates, quantization))
        for query, candidates in (exact, *cut)
    ]
    return [*cut, *rounded]


def fake_quantize(vectors: Tensor, output: str) -> Tensor:
    """Unit vectors `(N, D)` as they are after rounding, of unit length; gradients pass unchanged.

    "int8" rounds each dimension to 256 steps between its least and largest value in the batch, as
    `vectors.quantize` does with a model's ranges; "binary" keeps signs.
    """
    with torch.no_grad():
        if output == "binary":
            rounded = vectors.sign()
        else:
            low, high = vectors.amin(0), vectors.amax(0)
            step = ((high - low) / 255).clamp_min(torch.finfo(vectors.dtype).tiny)
            rounded = low + step * (((vectors - low) / step).floor().clamp(0, 255) + 0.5)
        rounded = F.normalize(rounded, dim=-1)
    return vectors + (rounded - vectors).detach()


def _masked_cross_entropy(scores: Tensor, positives: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of `(Q, C)` scores, those of -inf left out of the smoothing too."""
    logs = scores.log_softmax(dim=1)
    out = scores.isneginf()
    spread = logs.masked_fill(out, 0.0).sum(dim=1) / (~out).sum(dim=1)
    right = logs.gather(1, positives[:, None])[:, 0]
    return -((1 - label_smoothing) * right + label_smoothing * spread).mean()


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

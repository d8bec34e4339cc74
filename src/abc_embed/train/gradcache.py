"""Exact gradients of a big batch on a small memory.

A contrastive loss needs all embeddings of a batch at once, but not all activations. So: embed chunk
by chunk and keep nothing but the vectors; take the loss and its gradient with respect to the
vectors; embed chunk by chunk once more, now keeping activations, and push each vector's gradient
through. Memory is that of one chunk, the price is one more forward pass. (Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"; the paper names it as
the way on, section 4.)

The second pass must draw the same dropout as the first, or the gradient belongs to another vector:
the random state before each chunk is kept and put back.

Shapes: `N` vectors of all chunks together, `n` of one chunk, `D` width.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")


def plain_backward(
    chunks: Sequence[Chunk],
    encode: Callable[[Chunk], Tensor],
    loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    backward: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Embed all chunks, keep all activations, go back once. What `cached_backward` must equal.

    Gradients are left in the parameters.

    Args:
        chunks: What goes through the model, in passes.
        encode: Maps a chunk to `(n, D)`.
        loss_of: Maps all `(N, D)` vectors, in the order of the chunks, to loss and accuracy.
        backward: `Tensor.backward` or accelerate's.

    Returns:
        Loss and accuracy, both without gradient.
    """
    loss, accuracy = loss_of(torch.cat([encode(chunk) for chunk in chunks]))
    backward(loss)
    return loss.detach(), accuracy


def cached_backward(
    chunks: Sequence[Chunk],
    encode: Callable[[Chunk], Tensor],
    loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    backward: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """The same as `plain_backward`, with the activations of one chunk at a time.

    Parameters that `loss_of` uses itself (the temperature) get their gradient as well.
    """
    if len(chunks) == 1:
        return plain_backward(chunks, encode, loss_of, backward)
    states, vectors = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append((torch.get_rng_state(), torch.cuda.get_rng_state_all()))
            vectors.append(encode(chunk))
    lengths = [len(vector) for vector in vectors]
    leaves = torch.cat(vectors).requires_grad_()  # (N, D)
    vectors.clear()
    loss, accuracy = loss_of(leaves)
    backward(loss)
    if leaves.grad is None:
        raise ValueError("the loss does not depend on the vectors")
    gradients = leaves.grad.split(lengths)
    for chunk, (cpu, cuda), gradient in zip(chunks, states, gradients, strict=True):
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
        # A scalar whose derivative by each vector is the kept gradient: unlike
        # `Tensor.backward(gradient)` it also passes through the wrappers of accelerate.
        backward((encode(chunk) * gradient).sum())
    return loss.detach(), accuracy

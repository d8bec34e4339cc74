"""Values that hold tensors, pickled for another process."""

import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any


def pickle_tensors(
    value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None
) -> bytes:
    """Pickle a value with its tensors as arrays; `pickle.loads` gives tensors again.

    Torch pickles tensors slowly, one by one. A tensor that stands twice is one.

    Args:
        buffer_callback: Is given the content of each tensor, which the pickle then leaves out;
            `pickle.loads` needs it as `buffers`.
    """
    import torch

    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5, buffer_callback=buffer_callback)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[torch.Tensor] = lambda tensor: (torch.from_numpy, (tensor.numpy(),))
    pickler.dump(value)
    return stream.getvalue()

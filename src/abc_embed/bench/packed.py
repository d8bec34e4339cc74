"""Small whole numbers, thousands of them, in a line of a JSON record.

Does: array -> text and back, without loss: zlib over the smallest unsigned type, in base64.
"""

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abc_embed.errors import DataError


def pack(values: ArrayLike) -> dict[str, Any]:
    """Whole numbers from 0, of any shape, as JSON values.

    Raises:
        ValueError: a number is below 0.
    """
    array = np.asarray(values, dtype=np.int64)
    if array.size and array.min() < 0:
        raise ValueError("only numbers from 0 can be packed")
    kind = np.min_scalar_type(int(array.max(initial=0))).newbyteorder("<")
    data = zlib.compress(array.astype(kind).tobytes(), 9)
    return {
        "shape": list(array.shape),
        "dtype": kind.str,
        "zlib_base64": base64.b64encode(data).decode(),
    }


def unpack(packed: Any) -> NDArray[np.int64]:
    """What was packed.

    Raises:
        DataError: it is not what `pack` gives.
    """
    try:
        data = zlib.decompress(base64.b64decode(packed["zlib_base64"], validate=True))
        kind = np.dtype(packed["dtype"])
        if kind.kind != "u":
            raise ValueError
        return np.frombuffer(data, kind).reshape(packed["shape"]).astype(np.int64)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error):
        raise DataError("packed numbers of the record are damaged; measure again") from None

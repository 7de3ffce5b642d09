"""How numbers are kept in a store: float32, or half of its bits, but never an infinity that was none.

Rounding to half precision is where a store could lose values without a word, so it stands apart and says so.
"""

import hashlib

import numpy as np

STORED_AS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""dtype -> what the arrays hold. Zarr has no bfloat16, so its bits are kept: the upper half of a float32."""


class StoreError(ValueError):
    """A store is missing, damaged or of another kind than asked for."""


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to the store's dtype, to the nearest, ties to even.

    Raises:
        StoreError: a value would become infinite.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
    if not np.isfinite(decode(stored, dtype)).all():
        raise StoreError(f"values up to {np.abs(values).max():.3g} do not fit {dtype}; use a store of float32")
    return stored


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values of what the arrays hold."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(stored, dtype=np.float32)


def checksum(values: np.ndarray) -> str:
    """Return the SHA-256 of the bytes of an array, in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

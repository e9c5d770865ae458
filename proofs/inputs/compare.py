"""The one comparator: same shape, same dtype, every element the same bits, any NaN equal to any NaN, +0 unlike -0.

Values may be NumPy arrays and scalars, torch tensors, JAX arrays, None, and (named) tuples of these, to any depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..modes.arrays import to_numpy
from .bits import is_float, ordinal, raw_bits

FARTHEST = 2**63 - 1


@dataclass(frozen=True)
class Comparison:
    """What came of comparing an expected value with one got.

    Attributes:
        compared: elements compared; of all parts of a tuple.
        differing: elements that differ. Where dtype, shape or structure differ, all of the expected ones (at least 1).
        part: which part of a tuple the example lies in ("gradients.scale"); "" for plain arrays.
        index: of the example: the differing element whose input is smallest in magnitude when inputs are given, else
            the first one, in row-major order. None when nothing differs, or when shape, dtype or structure do.
        expected: the expected element at ``index``, a NumPy scalar.
        got: the element got there.
        reason: "" when nothing differs, else "bits", "dtype", "shape" or "structure", and what was found.
    """

    compared: int
    differing: int
    part: str = ""
    index: tuple[int, ...] | None = None
    expected: Any = None
    got: Any = None
    reason: str = ""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.differing == 0


def same_bits(a: Any, b: Any) -> bool:
    """Whether two values are the same, bit for bit; see the module."""
    return differences(a, b).same


def differences(expected: Any, got: Any, *, inputs: Any = None) -> Comparison:
    """Compare two values and find the example that shows best how they differ.

    Args:
        inputs: array of what went in, when there is one; among differing elements of an array of its shape the one with
            the smallest input is the example.
    """
    shown = None if inputs is None else to_numpy(inputs)
    if isinstance(expected, tuple) or isinstance(got, tuple):
        return _compare_tuples(expected, got, shown)
    if expected is None or got is None:
        if expected is got:
            return Comparison(0, 0)
        return _unlike(_size(expected), f"structure: expected {_kind(expected)}, got {_kind(got)}")
    return _compare_arrays(to_numpy(expected), to_numpy(got), shown)


def assert_same_bits(
    expected: Any, got: Any, *, call: str = "", inputs: NDArray[Any] | Mapping[str, Any] | None = None
) -> None:
    """AssertionError unless both are the same, bit for bit; the message holds all that is needed to repeat it by hand.

    Args:
        call: what was computed, as text, for the message.
        inputs: what went in: an array, or arrays by name. Those of the shape of the result are shown at the index of
            the example, scalars always.
    """
    named = dict(inputs) if isinstance(inputs, Mapping) else {} if inputs is None else {"input": inputs}
    arrays = {name: to_numpy(value) for name, value in named.items() if value is not None}
    found = differences(expected, got, inputs=next(iter(arrays.values()), None))
    if not found.same:
        raise AssertionError(explain(found, call=call, inputs=arrays))


def explain(found: Comparison, *, call: str = "", inputs: Mapping[str, NDArray[Any]] | None = None) -> str:
    """A difference in words: call, how many differ, where, the inputs there, expected and got with their bits."""
    share = f"{found.differing} of {found.compared} elements differ"
    lines = [f"{call}: {share}" if call else share, f"  {found.part + ': ' if found.part else ''}{found.reason}"]
    if found.index is not None:
        lines.append(f"  index     {found.index}")
        for name, value in (inputs or {}).items():
            at = () if value.ndim == 0 else found.index
            if len(at) == value.ndim and all(i < n for i, n in zip(at, value.shape, strict=True)):
                lines.append(f"  {name:<9} {describe(value[at])}")
        lines += [f"  expected  {describe(found.expected)}", f"  got       {describe(found.got)}"]
    return "\n".join(lines)


def describe(value: Any) -> str:
    """One number in full: decimal, hexadecimal float and bits, e.g. ``0.1 = 0x1.99999ap-4 (float32 bits 0x3dcccccd)``.

    Integers and booleans have no hexadecimal float; a Python float is a float64. TypeError for anything but one number.
    """
    array = to_numpy(value)
    if array.size != 1:
        raise TypeError(f"`value` must be one number, got shape {array.shape}")
    scalar = array.reshape(())[()]
    bits = f"{array.dtype.name} bits {int(raw_bits(array).reshape(())):#0{2 + 2 * array.dtype.itemsize}x}"
    if not is_float(array.dtype):
        return f"{scalar!s} ({bits})"
    decimal = float(scalar) if array.dtype.itemsize == 2 else scalar  # NumPy prints 65504 as 6.55e+04
    return f"{decimal!s} = {_hex(float(scalar))} ({bits})"


def ulp_distance(a: Any, b: Any) -> NDArray[np.int64]:
    """How many numbers of the dtype lie from one to the other, elementwise, int64; for integers ``|a - b|``.

    Both zeros are one place, two NaNs are at 0, NaN is `FARTHEST` from any number, as is all that is farther.

    Raises:
        TypeError: different dtypes.
        ValueError: different shapes.
    """
    left, right = to_numpy(a), to_numpy(b)
    if left.dtype != right.dtype:
        raise TypeError(f"`a` and `b` must have one dtype, got {left.dtype} and {right.dtype}")
    if left.shape != right.shape:
        raise ValueError(f"`a` and `b` must have one shape, got {left.shape} and {right.shape}")
    if not is_float(left.dtype):
        return np.asarray(np.abs(left.astype(np.int64) - right.astype(np.int64)))
    p, q = ordinal(left), ordinal(right)
    far = np.abs(p).astype(np.uint64) + np.abs(q).astype(np.uint64)
    near = np.where((p < 0) == (q < 0), np.abs(p - q).astype(np.uint64), far)
    distance = np.minimum(near, np.uint64(FARTHEST)).astype(np.int64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        one, other = np.isnan(left), np.isnan(right)
    return np.where(one & other, 0, np.where(one | other, FARTHEST, distance))


def _compare_arrays(expected: NDArray[Any], got: NDArray[Any], inputs: NDArray[Any] | None) -> Comparison:
    if expected.dtype != got.dtype:
        return _unlike(expected.size, f"dtype: expected {expected.dtype}, got {got.dtype}")
    if expected.shape != got.shape:
        return _unlike(expected.size, f"shape: expected {expected.shape}, got {got.shape}")
    differ = raw_bits(expected) != raw_bits(got)
    if is_float(expected.dtype):
        with np.errstate(invalid="ignore"):  # signalling NaN
            differ &= ~(np.isnan(expected) & np.isnan(got))
    count = int(np.count_nonzero(differ))
    if not count:
        return Comparison(expected.size, 0)
    where = np.flatnonzero(differ)
    if inputs is not None and inputs.shape == expected.shape and inputs.dtype != np.bool_:
        size = np.abs(inputs.reshape(-1)[where].astype(np.float64))
        where = where[[np.argmin(np.where(np.isnan(size), np.inf, size))]]
    index = tuple(int(i) for i in np.unravel_index(where[0], expected.shape))
    reason = f"bits, in dtype {expected.dtype} and shape {expected.shape}"
    return Comparison(expected.size, count, "", index, expected[index], got[index], reason)


def _compare_tuples(expected: Any, got: Any, inputs: NDArray[Any] | None) -> Comparison:
    if not (isinstance(expected, tuple) and isinstance(got, tuple)) or len(expected) != len(got):
        return _unlike(_size(expected), f"structure: expected {_kind(expected)}, got {_kind(got)}")
    names = getattr(expected, "_fields", tuple(map(str, range(len(expected)))))
    parts = [differences(e, g, inputs=inputs) for e, g in zip(expected, got, strict=True)]
    compared, differing = sum(p.compared for p in parts), sum(p.differing for p in parts)
    for name, part in zip(names, parts, strict=True):
        if not part.same:
            path = f"{name}.{part.part}" if part.part else str(name)
            return replace(part, compared=compared, differing=differing, part=path)
    return Comparison(compared, differing)


def _unlike(size: int, reason: str) -> Comparison:
    return Comparison(size, max(size, 1), reason=reason)


def _size(value: Any) -> int:
    if value is None:
        return 0
    return sum(map(_size, value)) if isinstance(value, tuple) else int(to_numpy(value).size)


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"an array of shape {to_numpy(value).shape}"


def _hex(value: float) -> str:
    """Hexadecimal float without the zeros that only a float64 needs."""
    mantissa, exponent, rest = value.hex().partition("p")
    return mantissa.rstrip("0").rstrip(".") + exponent + rest if "." in mantissa else value.hex()

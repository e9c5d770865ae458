"""Quotients as compiled code for a GPU has them, for every significand of a scale, whatever the device's quotient is.

On the CPU: the first quotient is replaced by each number up to four units in the last place away, in torch and in JAX;
what follows is exact there and on a device, but for what `samebits.proofs.divergence.hostile` takes. Every result is
compared with that of NumPy, which rounds once. The 2**23 significands stand for all scales, as in the certificates;
they are taken in 256 parts, each spread over all of them, so a sweep that is cut short is a sample of all.

    python benchmarks/quotients.py [--seconds 1200] [--parts 256]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from samebits.jax_backend import arrays, ieee, platforms
from samebits.jax_backend import devices as devices_of_jax
from samebits.proofs.inputs.halfway import LEAST, nearly_halfway, subnormal_quotients
from samebits.torch_frontend import devices

Array = NDArray[Any]
Kind = tuple[str, Array, Array]
PARTS, OFF = 256, range(-4, 5)
AT_ONCE = 1 << 16
DISTANCES = (1, -1, 3, -3)


def main() -> int:
    """Sweeps. 0 if no quotient differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--parts", type=int, default=PARTS, help="how many of the 256")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    as_on_a_device()
    start, rows = time.monotonic(), dict[str, Any]()
    for kinds in (hard, int8_steps):
        for part in range(min(arguments.parts, PARTS)):
            for kind, x, s in kinds(part):
                row = rows.setdefault(kind, {"parts": 0, "of": PARTS, "quotients": 0, "differing": 0})
                row["parts"], row["quotients"] = part + 1, row["quotients"] + x.size
                row["differing"] += differing(x, s)
            if time.monotonic() - start > arguments.seconds:
                break
    wrong = sum(row["differing"] for row in rows.values())
    print(
        json.dumps({"first quotients": len(OFF), "seconds": round(time.monotonic() - start), "kinds": rows}, indent=1)
    )
    return 1 if wrong else 0


def as_on_a_device() -> None:
    """Both frameworks compute as for a device that does not round once; the first quotient is off by `units`."""
    devices.rounds_once = lambda x: False
    devices.guess = _off_by.guess
    platforms.rounds_once = lambda: False
    devices_of_jax.about = _off_by.about


class _off_by:
    """First quotients, off by units that a program is given."""

    units: Any = 0

    @staticmethod
    def guess(dividend: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        near = (dividend * inverse).to(torch.float32).view(torch.int32)
        size = ((near & 0x7FFFFFFF) + _off_by.units).clamp(0, 0x7F7FFFFF)
        moved: torch.Tensor = (size | (near & -(2**31))).view(torch.float32)
        return moved.to(torch.float64)

    @staticmethod
    def about(a: jax.Array, b: jax.Array) -> jax.Array:
        quotient = a / b
        moved = arrays.from_pattern(arrays.bit_pattern(quotient) + _off_by.units, a.dtype)
        return jnp.where(quotient == 0, quotient, moved)


@cache
def programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How many of the quotients are not those that are wanted: in torch and in JAX, both compiled."""

    def in_torch(x: torch.Tensor, s: torch.Tensor, want: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        _off_by.units = units
        return (devices.quotient(x, s).view(torch.int32) != want).sum()

    def in_jax(x: jax.Array, s: jax.Array, want: jax.Array, units: jax.Array) -> jax.Array:
        _off_by.units = units
        return jnp.sum(arrays.bit_pattern(ieee.divide_exactly(x, s)) != want)

    return torch.compile(in_torch, fullgraph=True), jax.jit(in_jax)


def differing(x: Array, s: Array) -> int:
    """How many quotients ``x / s`` differ, over both frameworks and all first quotients."""
    with np.errstate(all="ignore"):
        want = (x / s).view(np.int32)
    total, (in_torch, in_jax) = 0, programs()
    for begin in range(0, x.size, AT_ONCE):
        given = [np.resize(a[begin : begin + AT_ONCE], AT_ONCE) for a in (x, s, want)]  # filled up with the first ones
        of_torch, of_jax = [torch.from_numpy(a) for a in given], [jnp.asarray(a) for a in given]
        for units in OFF:
            total += int(in_torch(*of_torch, torch.tensor(units, dtype=torch.int32)))
            total += int(in_jax(*of_jax, jnp.int32(units)))
    return total


def hard(part: int) -> Iterator[Kind]:
    """Dividends and divisors of a part, by what they are: those that decide."""
    rng = np.random.default_rng(part)
    divisors = np.arange(LEAST + part, 2 * LEAST, PARTS)
    for distance in DISTANCES:
        near = nearly_halfway(divisors, distance)
        exponents = rng.integers(-20, 20, (2, near.divisor.size))
        yield "nearest to halfway", _scaled(near.dividend, exponents[0]), _scaled(near.divisor, exponents[1])
        bits = 24 if distance > 1 else 2 + part % 23
        yield "nearest to halfway, subnormal", *subnormal_quotients(nearly_halfway(divisors, distance, bits), rng)
    yield "halfway, subnormal", *_halfway_subnormal(part, rng)
    for step in (-2, -1, 0):
        dividends = np.clip(divisors + step, LEAST, None)
        yield "overflowing or nearly", _scaled(dividends, 104), _scaled(divisors, -24)
    yield "any", _scaled(rng.integers(LEAST, 2 * LEAST, divisors.size), 1), _scaled(divisors, 0)


def int8_steps(part: int) -> Iterator[Kind]:
    """Dividends where int8 codes change, and next to it: those of the certificates, of one sign."""
    s = _scaled(np.arange(LEAST + part, 2 * LEAST, PARTS), -23)
    for code in range(128):
        x = ((code + 0.5) * s.astype(np.float64)).astype(np.float32)
        for beside in (np.nextafter(x, np.float32(0)), x, np.nextafter(x, np.float32(np.inf))):
            yield "int8 steps", beside, s


def _halfway_subnormal(part: int, rng: Any) -> tuple[Array, Array]:
    """Exactly halfway: products of a divisor of few bits and an odd number of the others."""
    bits = 2 + part % 21
    divisor, odd = rng.integers(1 << (bits - 1), 1 << bits, AT_ONCE), rng.integers(0, 1 << (23 - bits), AT_ONCE) * 2 + 1
    exponent = rng.integers(1, 80, AT_ONCE)
    return _scaled(divisor * odd, exponent - 150), _scaled(divisor, exponent)


def _scaled(significand: Array, exponent: Any) -> Array:
    scaled: Array = np.ldexp(significand.astype(np.float64), exponent).astype(np.float32)
    return scaled


if __name__ == "__main__":
    raise SystemExit(main())

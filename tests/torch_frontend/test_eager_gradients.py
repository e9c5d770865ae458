"""Gradients made in place, in eager mode, beside the expressions that everything else takes."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from samebits.core import Gradient, Quantizer, catalog, choose_qparams
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import arrays, eager_gradients, routes
from samebits.torch_frontend.blocks import split_blocks
from samebits.torch_frontend.elementwise import gradient_terms

NAMES = (
    "int8_per_tensor",
    "int8_per_channel",
    "uint8_per_tensor",
    "uint8_affine_per_tensor",
    "uint8_affine_per_channel",
    "int4_per_group32",
    "uint4_affine_float_zero_per_group64",
    "float8_e4m3fn_per_channel",
    "float8_e5m2_per_tensor",
    "binary_per_tensor",
    "ternary_per_channel",
    "nf4_per_group64",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SPECIALS = {
    "nothing": (1.0, 1.0),
    "x": (np.nan, 1.0),
    "x infinite": (np.inf, 1.0),
    "g": (1.0, np.nan),
    "g infinite": (1.0, np.inf),
}
WANTED = ((True, True, True), (True, False, False), (False, True, False), (False, False, True), (True, False, True))


def quantizers() -> list[Quantizer]:
    """Each of `NAMES` with every gradient rule that it may have, and PACT per channel."""
    rows = catalog["int8_per_channel"].granularity
    found = [catalog["uint8_per_tensor"].replace(granularity=rows, gradient=Gradient.LEARNED_CLIP)]
    for name, gradient in product(NAMES, Gradient):
        try:
            found.append(catalog[name].replace(gradient=gradient))
        except ValueError:
            continue
    return found


def data(q: Quantizer, dtype: torch.dtype, special: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, g, scale and zero point: tiny and huge numbers, both zeros, some clamped, and one number more of each kind."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 32, 128)).astype(np.float32)
    x *= 3
    x.flat[rng.integers(0, x.size, 40)] = rng.choice(np.array([0, -0.0, 1e-45, -1e-38, 1e30, -1e30], np.float32), 40)
    wide = np.float64 if dtype == torch.float64 else np.float32
    given = choose_qparams(q, x.clip(-2, 2).astype(wide))
    for array, value in zip((x, g), SPECIALS[special], strict=True):
        array[3, 5], array[30, 100] = value, -value
    zero = None if given.zero_point is None else torch.from_numpy(np.array(given.zero_point).astype(wide))
    return torch.from_numpy(x).to(dtype), torch.from_numpy(g).to(dtype), torch.from_numpy(np.array(given.scale)), zero


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", SPECIALS)
def test_in_place_as_by_expressions(dtype: torch.dtype, special: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of x bit for bit; sums over blocks within the stated bound of the same terms, in one chunk and many."""
    for q, wanted, chunk in product(quantizers(), WANTED, (512, arrays.CHUNK)):
        wanted = (*wanted[:2], wanted[2] and q.affine)
        if not any(wanted):
            continue
        monkeypatch.setattr(eager_gradients, "CHUNK", chunk)
        x, g, scale, zero = data(q, dtype, special)
        found = eager_gradients.gradients(q, x, scale, zero, g, wanted)
        value, s, z = routes.views(q, x, scale, zero)
        expected = gradient_terms(q, value, s, z, g.reshape(value.shape), wanted)
        if wanted[0]:
            assert expected.x is not None
            assert_same_bits(found.x, expected.x.reshape(x.shape))
        for total, terms in zip(found[1:], expected[1:], strict=True):
            assert (total is None) == (terms is None)
            if total is not None and terms is not None:
                blocks = split_blocks(terms.reshape(x.shape).double(), q.granularity)
                bound = 2 * blocks.shape[-1] * 2.0**-53 * blocks.abs().sum(-1)
                off = (total.reshape(bound.shape) - blocks.sum(-1)).abs()
                same = total.reshape(bound.shape).nan_to_num(7.0) == blocks.sum(-1).nan_to_num(7.0)
                assert bool(((off <= bound) | same).all()), (q, wanted, chunk)

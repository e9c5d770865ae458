"""Codes of less than 8 bits in as few bytes as they need; see `samebits.core.packing`. By shifts and sums of bits."""

import torch
from torch import Tensor

from ...core.bytes_of_codes import check_packable, check_packed, packed_length
from ..arguments import check_tensor
from ..arrays import dtype_name, is_concrete


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes of codes, along the last axis.

    Args:
        codes: int8 or uint8 ``(..., n)``, each fits ``bits`` bits; ``bits``: 1 to 8.
    Returns:
        uint8 ``(..., ceil(n * bits / 8))``.
    Raises:
        TypeError, ValueError: another dtype or width, no axis, or, in eager mode, a code that needs more bits.
    """
    check_tensor("codes", codes)
    check_packable(dtype_name(codes.dtype), codes.ndim, bits)
    if is_concrete(codes) and codes.numel():
        least, most = int(codes.amin()), int(codes.amax())
        low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if codes.dtype == torch.int8 else (0, 1 << bits)
        if least < low or most >= high:
            raise ValueError(f"`codes` must fit {bits} bits, got codes from {least} to {most}")
    n = codes.shape[-1]
    digits = codes.view(torch.uint8) if codes.dtype == torch.int8 else codes
    if bits == 8:
        return digits.clone()
    if bits == 4:
        digits = torch.nn.functional.pad(digits & 15, (0, n % 2))
        return (digits[..., ::2] << 4) | digits[..., 1::2]
    each = (digits.unsqueeze(-1) >> _falling(bits, codes.device)) & 1
    stream = torch.nn.functional.pad(each.flatten(-2), (0, 8 * packed_length(n, bits) - n * bits))
    return _sums_of_bits(stream.reshape(*stream.shape[:-1], packed_length(n, bits), 8))


def unpack(packed: Tensor, bits: int, length: int, signed: bool) -> Tensor:
    """Codes of bytes, along the last axis: int8 if ``signed``, else uint8, ``(..., length)``.

    Args:
        packed: uint8, as `pack` gives it for ``length`` codes.
    Raises:
        TypeError, ValueError: another dtype or width, or bytes for another number of codes.
    """
    check_tensor("packed", packed)
    check_packed(dtype_name(packed.dtype), tuple(packed.shape), bits, length)
    if bits == 8:
        return packed.view(torch.int8).clone() if signed else packed.clone()
    if bits == 4:
        digits = torch.stack((packed >> 4, packed & 15), -1).flatten(-2)[..., :length]
    else:
        each = ((packed.unsqueeze(-1) >> _falling(8, packed.device)) & 1).flatten(-2)
        digits = _sums_of_bits(each[..., : length * bits].reshape(*each.shape[:-1], length, bits))
    if not signed:
        return digits
    shift = 8 - bits  # an arithmetic shift back down spreads the sign
    return (digits << shift).view(torch.int8) >> shift


def _falling(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits - 1, -1, -1, dtype=torch.uint8, device=device)


def _sums_of_bits(each: Tensor) -> Tensor:
    """The numbers whose bits lie on the last axis, highest first."""
    return (each << _falling(each.shape[-1], each.device)).sum(-1, dtype=torch.uint8)

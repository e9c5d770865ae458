"""Which ready quantizers of Brevitas have a declaration here; the others are said to be left out, with the reason."""

import importlib
import re

from samebits.core import quant, quant_floats
from samebits.core.inject import Declaration

ROOMS = "scaled_int shifted_scaled_int fixed_point binary ternary float float_quant_ocp float_quant_fnuz mx_quant_ocp"
NAMED_AS = {"BatchQuant1d": "BatchQuant1d", "BatchQuant2d": "BatchQuant1d", "Decoupled": "Decoupled", "MSE": ""}
WITHOUT_WIDTHS = re.compile(r"Fp(OCP|FNUZ)(Weight|Act)")  # of no format, named together; `Fp8e4m3OCPWeight` is one


def test_every_quantizer_is_there_or_said_to_be_left_out() -> None:
    theirs = {
        name
        for room in ROOMS.split()
        for name, found in vars(importlib.import_module(f"brevitas.quant.{room}")).items()
        if isinstance(found, type) and found.__module__ == f"brevitas.quant.{room}" and not name.endswith("Mixin")
    }
    ours = {n for room in (quant, quant_floats) for n, d in vars(room).items() if isinstance(d, Declaration)}
    said = f"{quant.__doc__}{quant_floats.__doc__}"
    left_out = {name for name in theirs - ours if not WITHOUT_WIDTHS.match(name)}
    for name in left_out:
        end = next((end for end in NAMED_AS if name.endswith(end)), "")
        assert f"{name.removesuffix(end) if not NAMED_AS.get(end) else NAMED_AS[end]}" in said, name
    assert len(theirs & ours) == 101
    assert len(left_out) == 16
    assert "FpOCPWeight" in said

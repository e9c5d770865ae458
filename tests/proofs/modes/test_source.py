"""The digest of the source that certificates record: what it covers, what changes it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from samebits import core, jax_backend, torch_frontend
from samebits.core import catalog
from samebits.proofs.modes.execution import run_all
from samebits.proofs.modes.source import FUNCTIONS, NAMES, ROOMS, all_modules, reached, source_digest, tree_digest

INT4 = catalog["int4_per_channel"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Other."""\n# more\ndef f(x):\n    """Words."""\n\n    return (x +\n            1.0)  # one more\n', True),
        ("def f(x):\n    return x + 1\n", False),
        ("def f(x):\n    return 1.0 + x\n", False),
        ("def f(y):\n    return y + 1.0\n", False),
        ("def f(x: float):\n    return x + 1.0\n", False),
        ("def f(x):\n    return x + 1.0\n\nf = abs\n", False),
        ("def f(x=None):\n    return x + 1.0\n", False),
    ],
)
def test_the_digest_of_a_source_is_one_of_what_runs(text: str, same: bool) -> None:
    assert (tree_digest(text) == tree_digest('def f(x):\n    "Text."\n    return x + 1.0\n')) is same


def test_every_module_of_the_rooms_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = sorted(Path(core.__file__).parent.rglob("*.py"))
    seen: list[str] = []

    def digest(text: str) -> str:
        seen.append(text)
        return ""

    monkeypatch.setattr("samebits.proofs.modes.source.tree_digest", digest)
    monkeypatch.setattr("samebits.proofs.modes.source.ROOMS", ("core",))
    source_digest()
    assert seen == [path.read_text() for path in modules]
    source_digest(without=NAMES)
    assert len(seen) == 2 * len(modules) - len(NAMES)


def test_the_digest_of_a_certificate_covers_what_its_functions_run() -> None:
    """Every function of the rooms that runs when the five do, in every mode, lies in a module of the digest."""
    own = reached(all_modules(), FUNCTIONS)
    assert {f"{room}/quantizer.py" for room in ROOMS} <= own
    assert not {"torch_frontend/nn/linear.py", "jax_backend/layers.py", "core/catalog.py", "core/__init__.py"} & own
    for room in (core, jax_backend, torch_frontend):  # what users and modes call is what stands in these modules
        for name in ("choose_qparams", "quantize", "dequantize", "fake_quantize", "fake_quantize_vjp"):
            assert getattr(room, name).__module__ == f"{room.__name__}.quantizer"
    files: set[str] = set()
    x, g = np.linspace(-3, 3, 64, dtype=np.float32).reshape(4, 16), np.ones((4, 16), np.float32)
    for q in (INT4, catalog["float4_e2m1_per_tensor"]):
        for mode in ("numpy", "torch eager", "jax eager"):
            sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
            try:
                run_all(mode, q, x, g)
            finally:
                sys.setprofile(None)
    paths = [Path(file) for file in files]
    ran = {f"{path.parent.name}/{path.name}" for path in paths if path.parent.parent == Path(__file__).parents[3]}
    ran = {name for name in ran if name.partition("/")[0] in ROOMS}
    assert len(ran) > 30
    assert ran <= own


def test_imports_are_followed_wherever_they_stand() -> None:
    modules = {
        "core/quantizer.py": "from .a import f\n",
        "core/a.py": "def f():\n    from . import b\n    from ..jax_backend.c import g\n",
        "core/b.py": "import samebits.core.d\n",
        "core/d.py": "import numpy.linalg\nfrom numpy import array\n",
        "core/e.py": "from .quantizer import quantize\n",
        "jax_backend/c.py": "",
    }
    assert reached(modules, FUNCTIONS) == set(modules) - {"core/e.py"}
    modules |= {"core/__init__.py": "from .e import g\n", "core/d.py": "from . import name\n"}
    assert reached(modules, FUNCTIONS) == set(modules)


def test_imports_are_followed_into_folders_and_out_of_them() -> None:
    modules = {
        "core/quantizer.py": "from ..jax_backend.nn.linear import f\n",
        "jax_backend/nn/linear.py": "from .layer import g\nfrom ..arrays import h\n",
        "jax_backend/nn/layer.py": "from ...core.grid import i\nfrom .. import signs\nfrom .. import nn\n",
        "jax_backend/nn/__init__.py": "",
        "jax_backend/arrays.py": "",
        "jax_backend/signs.py": "",
        "jax_backend/nn/conv.py": "",
        "core/grid.py": "",
    }
    assert reached(modules, FUNCTIONS) == set(modules) - {"jax_backend/nn/conv.py"}

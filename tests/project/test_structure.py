"""The structure of the project: imports, mirrored verbs and layers, exports, docstrings, annotations.

The checks read source text and return complaints; `BAD` holds a source that each of them must complain about.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits import proofs

from .source import BACKENDS, ROOMS, ROOT, definitions, imported_names, is_public, parsed

NOUNS = {
    "affine",
    "arithmetic",
    "autoquant",
    "bytes_of_codes",
    "calibration",
    "catalog",
    "checks",
    "choice",
    "coefficients",
    "configs",
    "contraction",
    "described",
    "descriptions",
    "directions",
    "dialects",
    "formats",
    "formula",
    "formula_errors",
    "formula_gradients",
    "formula_values",
    "gguf_files",
    "granularity",
    "inject",
    "integer_checks",
    "integer_range",
    "keywords",
    "rules",
    "layerwise",
    "observing",
    "operands",
    "partial_derivatives",
    "plan_files",
    "prototype",
    "quant",
    "quant_fields",
    "quant_floats",
    "quantized_files",
    "requirements",
    "scales",
    "windows",
}
VERBS = {
    "accumulator",
    "bit_width",
    "blocks",
    "clamp",
    "elementary",
    "grid",
    "half_quadratic",
    "integer_arithmetic",
    "integer_pooling",
    "learned_rounding",
    "learned_sigma",
    "matmul",
    "minifloat",
    "norms",
    "prototypes",
    "quantizer",
    "ranges",
    "rounding",
    "running",
    "scaling",
    "softmax",
    "statistics",
    "ste",
    "straight_through",
    "sums",
    "threefry",
    "zero_point",
    "operations",
    "scale_rules",
}
# in the folder ptq of both backends
PTQ_VERBS = {
    "adaround",
    "bias_correction",
    "equalization",
    "folding",
    "gguf",
    "gptq",
    "histograms",
    "observers",
    "packing",
    "smoothquant",
}
PTQ_APART = {"quantization_map", "quantize", "requantize"}  # of a model in torch, of a function in JAX
TABLES = {"integer_tables"}  # computed by core alone; backends are given arrays
BOUNDARY = {"arguments"}  # in each room what its own arrays need

EAGER = ("core", *BACKENDS)  # rooms that import what they export

MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def forbidden_imports(tree: ast.Module, package: str) -> list[str]:
    """What a backend may not import: of core anything but nouns, the other backend, proofs, or a computed name.

    The room that converts models of torch knows its layers.
    """
    found = []
    layers = "samebits.torch_frontend.nn" if package == "samebits.jax_backend.interop" else None
    for name in imported_names(tree, package):
        parts = name.split(".")
        own = parts[:2] == package.split(".")[:2]
        noun = parts[:2] == ["samebits", "core"] and parts[2:3] != [] and parts[2] in NOUNS
        if name == "?" or (parts[0] == "samebits" and not own and not noun and ".".join(parts[:3]) != layers):
            found.append(name)
    return found


def bad_exports(tree: ast.Module) -> list[str]:
    """Statements of an ``__init__`` other than its docstring, the guard of a backend and ``from .x import f as f``."""
    found = []
    guarded = [ast.unparse(node) for node in tree.body[1:3]] in map(guard, BACKENDS)
    for node in tree.body[3 if guarded else 1 :]:
        plain = isinstance(node, ast.ImportFrom) and node.level in (1, 2, 3) and node.module
        if not plain or any(alias.asname != alias.name for alias in node.names):  # type: ignore[attr-defined]
            found.append(ast.unparse(node))
    return found


def guard(room: str) -> list[str]:
    """What a backend begins with, so that a missing framework is said in one line."""
    return ["from ..core.requirements import require", f"require({room!r})"]


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods without a docstring, and the module itself if it has none."""
    found = [] if ast.get_docstring(tree) else ["module"]
    return found + [name for name, node in definitions(tree) if is_public(name) and not ast.get_docstring(node)]


def unannotated(tree: ast.Module) -> list[str]:
    """Functions and methods, private ones too, of which an argument or the result has no annotation."""
    found = []
    for name, node in definitions(tree):
        if isinstance(node, ast.ClassDef):
            continue
        spec = node.args
        optional = [a for a in (spec.vararg, spec.kwarg) if a is not None]
        positional = [*spec.posonlyargs, *spec.args]
        if "." in name and positional and positional[0].arg in ("self", "cls"):
            positional = positional[1:]
        bare = [a.arg for a in (*positional, *spec.kwonlyargs, *optional) if a.annotation is None]
        found += [f"{name}({a})" for a in bare] + ([] if node.returns else [f"{name} -> ?"])
    return found


# check, the source that it must complain about, what it must name
BAD: list[tuple[Callable[[ast.Module], list[str]], str, list[str]]] = [
    (lambda tree: forbidden_imports(tree, "samebits.jax_backend"), source, names)
    for source, names in [
        ("from ..core.rounding import round_to_integer", ["samebits.core.rounding.round_to_integer"]),
        ("from ..core import quantize", ["samebits.core.quantize"]),
        ("from ..core import clamp, checks", ["samebits.core.clamp"]),
        ("from .. import core", ["samebits.core"]),
        ("import samebits.core.ste", ["samebits.core.ste"]),
        ("import samebits.core", ["samebits.core"]),
        ("def f():\n    from ..torch_frontend import clamp", ["samebits.torch_frontend.clamp"]),
        ("from samebits.proofs import laws", ["samebits.proofs.laws"]),
        ("import importlib\nimportlib.import_module('samebits.core.ste')", ["?"]),
        ("from ..core.checks import check_codes\nfrom .clamp import clamp\nimport numpy", []),
    ]
]
BAD += [
    (bad_exports, '"""."""\nfrom .clamp import clamp', ["from .clamp import clamp"]),
    (bad_exports, '"""."""\nfrom .clamp import clamp as clip', ["from .clamp import clamp as clip"]),
    (bad_exports, '"""."""\nfrom . import clamp as clamp', ["from . import clamp as clamp"]),
    (bad_exports, '"""."""\n__all__ = []', ["__all__ = []"]),
    (bad_exports, '"""."""\nfrom .clamp import clamp as clamp', []),
    (bad_exports, f'"""."""\n{chr(10).join(guard("jax_backend"))}\nfrom .clamp import clamp as clamp', []),
    (bad_exports, f'"""."""\n{guard("jax_backend")[0]}', [guard("jax_backend")[0]]),
    (bad_exports, f'"""."""\n{guard("jax_backend")[1]}', [guard("jax_backend")[1]]),
    (bad_exports, '"""."""\n' + "\n".join(guard("proofs")), guard("proofs")),
    (bad_exports, '"""."""\n' + "\n".join([*guard("jax_backend"), "print()"]), ["print()"]),
    (
        bad_exports,
        '"""."""\nfrom .clamp import clamp as clamp\n' + "\n".join(guard("jax_backend")),
        guard("jax_backend"),
    ),
    (undocumented, "def f(): ...\nclass C:\n    def m(self): ...\n    def _n(self): ...", ["module", "f", "C", "C.m"]),
    (unannotated, "def f(a, *b, c: int) -> int: ...", ["f(a)", "f(b)"]),
    (unannotated, "class C:\n    def m(self, x: int): ...", ["C.m -> ?"]),
]


@pytest.mark.parametrize(("check", "source", "complaints"), BAD)
def test_checks_see_what_they_look_for(
    check: Callable[[ast.Module], list[str]], source: str, complaints: list[str]
) -> None:
    assert check(ast.parse(source)) == complaints


def test_import_contracts() -> None:
    script, contracts = Path(sys.executable).with_name("lint-imports"), str(ROOT / "pyproject.toml")
    command = [str(script), "--config", contracts, "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("room", BACKENDS)
def test_backends_import_only_nouns_of_core(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        package = ".".join(("samebits", *path.parent.relative_to(ROOT).parts))
        assert not forbidden_imports(parsed(path), package), path


def test_every_module_of_core_is_a_noun_or_a_verb() -> None:
    modules = {path.stem for path in (ROOT / "core").glob("*.py")} - {"__init__"}
    assert modules == NOUNS | VERBS | PTQ_VERBS | TABLES | BOUNDARY
    assert {path.parent.name for path in (ROOT / "core").rglob("*/*.py")} == {"primitives"}


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_nouns_import_only_nouns(noun: str) -> None:
    names = [name.split(".") for name in imported_names(parsed(ROOT / "core" / f"{noun}.py"), "samebits.core")]
    assert {parts[2] for parts in names if parts[:2] == ["samebits", "core"]} <= NOUNS


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("room", BACKENDS)
def test_verbs_have_the_same_signatures_in_every_room(room: str, verb: str) -> None:
    assert public_signatures(room, verb) == public_signatures("core", verb)


@pytest.mark.parametrize("room", BACKENDS)
def test_primitives_have_the_same_places_and_signatures_in_every_room(room: str) -> None:
    """Their files may have helpers besides."""
    listed = {
        one: (ROOT / one / "primitives" / "__init__.py").read_text().partition('"""\n')[2] for one in (room, "core")
    }
    assert listed[room] == listed["core"]
    exports = re.findall(r"from \.(\w+) import (\w+) as", listed["core"])
    signatures = {verb: [public_signatures(f"{one}/primitives", verb) for one in listed] for verb, _ in exports}
    assert len(exports) >= 50
    for verb, name in exports:
        own, wanted = signatures[verb]
        assert own[name] == wanted[name], name


@pytest.mark.parametrize("verb", sorted(PTQ_VERBS))
@pytest.mark.parametrize("room", BACKENDS)
def test_verbs_of_post_training_have_the_same_signatures_in_every_room(room: str, verb: str) -> None:
    assert public_signatures(f"{room}/ptq", verb) == public_signatures("core", verb)


@pytest.mark.parametrize("verb", sorted(path.stem for path in (ROOT / "jax_backend" / "ptq").glob("*.py")))
def test_functions_of_post_training_have_the_same_parameters_in_both_backends(verb: str) -> None:
    in_torch, in_jax = (
        public_signatures(f"{room}/ptq", verb) if (ROOT / room / "ptq" / f"{verb}.py").exists() else {}
        for room in BACKENDS
    )
    for name in in_torch.keys() & in_jax.keys() - PTQ_APART:
        assert [p[:2] for p in in_torch[name]] == [p[:2] for p in in_jax[name]], name


def public_signatures(room: str, verb: str) -> dict[str, list[tuple[str, str, object]]]:
    """Name, kind and default of every parameter of every public function that a verb's file defines."""
    module = importlib.import_module(f"samebits.{room.replace('/', '.')}.{verb}")
    names = [name for name, _ in definitions(parsed(ROOT / room / f"{verb}.py")) if is_public(name) and "." not in name]
    found = {name: getattr(module, name) for name in names}
    calls = {name: vars(one).get("__init__") if inspect.isclass(one) else one for name, one in found.items()}
    signatures = {name: inspect.signature(one).parameters.values() for name, one in calls.items() if one is not None}
    return {name: [(p.name, p.kind.description, p.default) for p in ps] for name, ps in signatures.items()}


@each_module
def test_public_things_have_docstrings(path: Path) -> None:
    assert not undocumented(parsed(path))


@each_module
def test_functions_are_annotated(path: Path) -> None:
    assert not unannotated(parsed(path))


# layers of JAX that flax names otherwise than torch names its own; and what a kind has in JAX alone
OF_TORCH = {
    "QuantEmbed": "QuantEmbedding",
    "QuantMultiHeadAttention": "QuantMultiheadAttention",
    "QuantSimpleCell": "QuantRNN",
    "QuantLSTMCell": "QuantLSTM",
}
IN_JAX_ALONE = {"QuantProjection", "Hidden", "Place"}
POOLS = ("QuantMaxPool", "QuantAvgPool", "QuantAdaptiveAvgPool")  # of torch, whose tensors bring their codes


@pytest.mark.parametrize("kind", sorted(path.stem for path in (ROOT / "jax_backend" / "nn").glob("*.py")))
def test_layers_have_the_same_quantizers_in_both_backends(kind: str) -> None:
    """What flax has of layers: in the file of that name, the same classes, which take the same quantizers at least."""
    torch_layers, jax_layers = (layers(room, kind) for room in BACKENDS)
    for name, quantizers in jax_layers.items():
        if name in IN_JAX_ALONE:
            continue
        given = {"input_quant": None} if name in POOLS else {}
        assert quantizers.items() <= (torch_layers[OF_TORCH.get(name, name)] | given).items(), name


def layers(room: str, kind: str) -> dict[str, dict[str, object]]:
    """The layers that a file defines, without the number of axes that torch has in names: quantizers, with defaults."""
    module = importlib.import_module(f"samebits.{room}.nn.{kind}")
    own = {n: c for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__}
    return {
        re.sub(r"[123]d$", "", name): {
            p.name: p.default
            for p in inspect.signature(layer.__init__).parameters.values()
            if p.name.endswith("_quant")
        }
        for name, layer in own.items()
    }


@pytest.mark.parametrize(
    "room",
    [
        *EAGER,
        *(f"{room}/{folder}" for room in BACKENDS for folder in ("nn", "ptq")),
        *(f"{room}/primitives" for room in EAGER),
    ],
)
def test_exports(room: str) -> None:
    tree = parsed(ROOT / room / "__init__.py")
    assert not bad_exports(tree)
    path = ".".join(("samebits", *room.split("/")))
    package = importlib.import_module(path)
    nodes = [node for node in tree.body[1:] if isinstance(node, ast.ImportFrom)]
    names = [("." * node.level + str(node.module), alias.name) for node in nodes for alias in node.names]
    assert len(names) == len(set(names))
    for module, name in names:
        assert getattr(package, name) is getattr(importlib.import_module(module, path), name), name


@pytest.mark.parametrize("room", BACKENDS)
def test_backends_ask_for_their_libraries_before_anything_imports_them(room: str) -> None:
    assert [ast.unparse(node) for node in parsed(ROOT / room / "__init__.py").body[1:3]] == guard(room)


def test_proofs_offers_its_names_lazily() -> None:
    """What a type checker sees is what `__getattr__` gives, under the same names, and no framework is imported."""
    (seen,) = (node for node in parsed(ROOT / "proofs" / "__init__.py").body if isinstance(node, ast.If))
    nodes = [node for node in seen.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: str(node.module) for node in nodes for alias in node.names if alias.asname == alias.name}
    assert len(names) == len(seen.body) >= 12
    for name, module in names.items():
        home = importlib.import_module(f"samebits.proofs.{module}")
        # a room that has the name of a function is called as it
        assert inspect.unwrap(getattr(proofs, name)) is inspect.unwrap(getattr(home, name))
        assert name in dir(proofs)
    assert set(names) == set(proofs._PLACES)
    with pytest.raises(AttributeError, match="has no attribute 'sameness'"):
        getattr(proofs, "same" + "ness")
    code = f"import sys; from samebits.proofs import {', '.join(names)}; print({{'torch', 'jax'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_proofs_says_what_its_rooms_are() -> None:
    rooms = sorted(path.parent.name for path in (ROOT / "proofs").glob("*/__init__.py"))
    assert rooms == [
        "certificates",
        "check",
        "cli",
        "conformance",
        "divergence",
        "inputs",
        "laws",
        "modes",
        "networks",
        "prototypes",
        "quantizing",
        "validation",
    ]
    for room in rooms:
        assert len(ast.get_docstring(parsed(ROOT / "proofs" / room / "__init__.py")) or "") > 100
        imported = set(imported_names(parsed(ROOT / "proofs" / room / "__init__.py"), f"samebits.proofs.{room}"))
        known = {"samebits.proofs.conformance.conform.conformance"}  # when the room is called
        inside = {name for name in imported if name.startswith("samebits")}
        assert inside == (known if room == "conformance" else set()), "an __init__ that imports makes circles"

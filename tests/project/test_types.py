"""Type information: nothing public is `Any` but what has no type, and each of those with its reason."""

import ast
import re
from collections.abc import Iterator

import pytest

from samebits.proofs import _PLACES

from .source import BACKENDS, ROOT, definitions, is_public, parsed

ROOMS = ("core", *BACKENDS)
# Why something is `Any`, by the beginning of its place. A place without a line fails, a line without a place too.
OF_ANY_LIBRARY = "arrays of NumPy, torch or JAX, or None: they have no type in common, and core imports no framework"
OF_FORMULAS = "what a user's function takes and gives: arrays of any room, options, and where parameters begin"
WIDTHS = "dtypes and NumPy scalars of several widths, for other files of the room; no user calls it"
REASONS = {
    "core/descriptions.py QParams.": OF_ANY_LIBRARY,
    "core/descriptions.py QuantizerGradients.": OF_ANY_LIBRARY,
    "core/descriptions.py Quantizer.replace(changes)": "fields of the quantizer and of its nouns, each of its own type",
    "core/inject.py ": "attributes of a declaration, and what they are given to: objects of any type",
    "core/quant_fields.py ": "fields of a declaration, which `Quantizer` and its nouns check",
    "core/observing.py ": "arrays of any room; an `Observer`, or what makes one; fields of quantizers by name",
    "core/keywords.py ": "keywords of layers: fields of quantizers, each of its own type",
    "core/rules.py ": "keywords of layers: fields of quantizers, each of its own type",
    "core/partial_derivatives.py Linear.": OF_ANY_LIBRARY,
    "core/formula": OF_FORMULAS,
    "core/prototype": OF_FORMULAS,
    "core/primitives/": "what operands are given as: arrays, numbers of Python, or what is refused",
    "core/arguments.py ": "whatever NumPy reads as an array, or refuses",
    "torch_frontend/recomputation.py ": "what a call used: its owner alone knows the type",
    "torch_frontend/components/": "shares of a description, each of its own type; the module that a method belongs to",
    "torch_frontend/quant.py ": "attributes of a declaration: objects of any type",
    "torch_frontend/loading.py load_state_dict": "what `torch.nn.Module.load_state_dict` takes and gives",
    "torch_frontend/nn/": "fields of quantizers as keywords, each of its own type; layers and quantizers of any class",
    "torch_frontend/ptq/": "fields of quantizers as keywords, each of its own type; what models and functions take",
    "torch_frontend/prototype": OF_FORMULAS,
    "torch_frontend/examined.py ": OF_FORMULAS,
    "torch_frontend/formula_pieces.py ": OF_FORMULAS,
    "torch_frontend/primitives/": "what operands are given as: tensors, numbers of Python, or what is refused",
    "torch_frontend/quant_": "what operators of torch take and give",
    "torch_frontend/programs.py programs(options)": "options of `torch.compile`",
    "torch_frontend/tensor_quantizer.py TensorQuantizer.compile_quant(options)": "options of `torch.compile`",
    "torch_frontend/arrays.py pieces ->": "as many tensors, and None where they are None, as were given",
    "jax_backend/arithmetic_gradients.py ": WIDTHS,
    "jax_backend/functional.py ": "definitions and pytrees of a module, and what it takes and gives",
    "jax_backend/nn/": "fields of quantizers as keywords, each of its own type; layers, parts and what they wait for",
    "jax_backend/prototype": OF_FORMULAS,
    "jax_backend/plain_": "what operands of a formula are: numbers of Python, of XLA, or what is known of them",
    "jax_backend/devices.py quotient_of(dtype)": WIDTHS,
    "jax_backend/primitives/": "what operands are given as: arrays, numbers of Python, or what is refused; dtypes",
    "jax_backend/pallas/quantizer.py options ->": "arguments of ``pallas_call``",
    "jax_backend/platforms.py ": "arrays, or None",
    "jax_backend/ptq/": "pytrees, and what they hold; what models take; a bool, or an array in traced code",
    "jax_backend/arithmetics.py ": WIDTHS,
    "jax_backend/arrays.py ": WIDTHS,
    "jax_backend/derivatives.py ": "a callable object of JAX, and types of arrays, for which JAX has no public name",
    "jax_backend/gradients.py rule_factor ->": WIDTHS,
    "jax_backend/sharding.py ": "entries of a PartitionSpec, and functions of any arguments",
    "jax_backend/grid.py decode(dtype)": WIDTHS,
    "jax_backend/ieee.py ": WIDTHS,
    "jax_backend/kernels.py ": WIDTHS,
    "jax_backend/operations.py ": WIDTHS,
    "jax_backend/scale_rules.py ": WIDTHS,
    "jax_backend/small_numbers.py ": WIDTHS,
    "jax_backend/interop/": "variables and modules of flax or functions; layers of torch of any class; pytrees",
    "proofs/certificates/certify.py certify(how)": "the arguments of `run`, handed on",
    "proofs/inputs/compare.py differences(": OF_ANY_LIBRARY,
    "proofs/inputs/found_edges.py ": OF_ANY_LIBRARY,
    "proofs/prototypes/decorator.py ": OF_FORMULAS,
    "proofs/inputs/compare.py assert_same_bits(": OF_ANY_LIBRARY,
}
WHOLE = {"NDArray", "dtype"}  # NDArray[Any] and np.dtype[Any] are arrays and dtypes of every kind, not unknown things


def loose(annotation: ast.expr | None) -> bool:
    """Whether an annotation holds `Any` anywhere but as the argument of a type of `WHOLE`."""
    match annotation:
        case None:
            return False
        case ast.Name(id=name):
            return name == "Any"
        case ast.Constant(value=str() as text):
            return loose(ast.parse(text, mode="eval").body)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name)) if name in WHOLE:
            return False
        case _:
            return any(loose(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr))


def loose_places(tree: ast.Module) -> Iterator[str]:
    """Where `Any` stands in public signatures and fields: ``function(argument)``, ``function -> ``, ``Class.field``."""
    for name, node in definitions(tree):
        if not is_public(name.removesuffix(".__init__")):
            continue
        if isinstance(node, ast.ClassDef):
            fields = (part for part in node.body if isinstance(part, ast.AnnAssign))
            yield from (f"{name}.{ast.unparse(field.target)}" for field in fields if loose(field.annotation))
            continue
        spec = node.args
        every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        yield from (f"{name}({argument.arg})" for argument in every if loose(argument.annotation))
        if loose(node.returns):
            yield f"{name} ->"


def found() -> Iterator[str]:
    """All such places of core and the backends, and of the names that `samebits.proofs` offers."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            yield from (f"{file} {place}" for place in loose_places(parsed(path)))
    for file in sorted(set(_PLACES.values())):
        path = ROOT / "proofs" / f"{file.replace('.', '/')}.py"
        names = [name for name, home in _PLACES.items() if home == file]
        for place in loose_places(parsed(path)):
            if re.split(r"[.( ]", place)[0] in names:
                yield f"{path.relative_to(ROOT).as_posix()} {place}"


def test_what_is_public_has_a_type_or_a_reason() -> None:
    places = list(found())
    assert [place for place in places if not place.startswith(tuple(REASONS))] == []
    assert [begin for begin in REASONS if not any(place.startswith(begin) for place in places)] == []


@pytest.mark.parametrize(
    ("source", "places"),
    [
        ("def f(x: Any, *y: 'Any', **z: int) -> list[Any]: ...", ["f(x)", "f(y)", "f ->"]),
        ("def f(x: Any | None, *, y: Callable[[Any], int]) -> int: ...", ["f(x)", "f(y)"]),
        ("def f(x: NDArray[Any], y: np.dtype[Any]) -> tuple[np.ndarray, ...]: ...", []),
        ("def _f(x: Any) -> Any: ...\nclass _C:\n    x: Any", []),
        ("class C:\n    x: Any\n    y: int\n    def m(self, z: Any) -> None: ...", ["C.x", "C.m(z)"]),
        (
            "class C:\n    def __init__(self, device: Any) -> None: ...\n    def _m(self, z: Any): ...",
            ["C.__init__(device)"],
        ),
    ],
)
def test_the_check_sees(source: str, places: list[str]) -> None:
    assert list(loose_places(ast.parse(source))) == places


def test_every_room_says_that_it_is_typed() -> None:
    assert all((ROOT / room / "py.typed").read_bytes() == b"" for room in (*ROOMS, "proofs"))

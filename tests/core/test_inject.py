"""Declarations that assemble themselves: what an access gives, what it says when it cannot, and what it changes."""

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samebits.core.inject import (
    Declaration,
    DependencyError,
    ExtendedInjector,
    Injector,
    describe,
    known_names,
    this,
    value,
)


class Scale:
    """A component that counts how often it is made."""

    made = 0

    def __init__(self, scaling_init: float, shape: tuple[int, ...] = ()) -> None:
        type(self).made += 1
        self.scaling_init, self.shape = scaling_init, shape


class Sign:
    """A component of a component, whose other arguments have defaults."""

    def __init__(self, scaling_impl: Scale, signed: bool = True, *rest: Any, steps: int = 0, **others: Any) -> None:
        assert not rest
        assert not others
        self.scaling_impl, self.signed, self.steps = scaling_impl, signed, steps


class Clamped(Sign):
    """Another one with the same arguments."""


class Both:
    """Asks twice for what is made of one name."""

    def __init__(self, first: Any, second: Any, scaling_impl: Scale) -> None:
        self.first, self.second, self.scaling_impl = first, second, scaling_impl


class Plain(Injector):
    """The declaration of the tutorial."""

    tensor_quant = Sign
    scaling_impl = Scale
    scaling_init = 0.1


class Advanced(Injector):
    """Functions that choose classes and attributes."""

    scaling_impl = Scale

    @value
    def tensor_quant(is_clamped: Any) -> Any:
        return Clamped if is_clamped else Sign

    @value
    def scaling_shape(per_channel: Any) -> Any:
        return this.channel_shape if per_channel else ()

    @value
    def scaling_init(module: Any, scaling_shape: Any) -> Any:
        return max(module) if isinstance(module, tuple) else (module, scaling_shape)


class Channels(Injector):
    """A piece to put together with others."""

    @value
    def channel_shape(module: Any) -> Any:
        return (module, 1)


class Put(Advanced, Channels):
    """Put together of two."""


def test_arguments_come_from_attributes_of_their_names_or_from_their_defaults() -> None:
    made: Any = Plain.tensor_quant
    assert type(made) is Sign
    assert (made.scaling_impl.scaling_init, made.scaling_impl.shape, made.signed, made.steps) == (0.1, (), True, 0)
    other: Any = Plain.let(signed=False, steps=3, shape=(2,)).tensor_quant
    assert (other.signed, other.steps, other.scaling_impl.shape) == (False, 3, (2,))


def test_every_access_makes_new_instances_and_one_access_makes_each_once() -> None:
    assert Plain.tensor_quant is not Plain.tensor_quant
    before = Scale.made
    both: Any = Plain.let(top=Both, first=this.scaling_impl, second=this.scaling_impl).top
    assert both.first is both.second is both.scaling_impl
    assert Scale.made == before + 1


def test_a_declaration_is_a_class_that_is_asked_and_nothing_else() -> None:
    assert ExtendedInjector is Injector
    assert issubclass(Plain, ExtendedInjector)
    assert "scaling_init" in Plain
    assert "act_impl" not in Plain
    assert "tensor_quant" in Put
    assert {"tensor_quant", "scaling_impl", "scaling_init"} == set(Plain)
    assert {"channel_shape", "scaling_init"} < set(dir(Put))
    for misuse in (lambda: Plain(), lambda: setattr(Plain, "scaling_init", 1), lambda: delattr(Plain, "scaling_init")):
        with pytest.raises(DependencyError, match="Plain"):
            misuse()
    assert Plain.scaling_init == 0.1


@pytest.mark.parametrize(
    ("bases", "body", "words"),
    [
        ((Injector,), {"let": 1}, "'let'"),
        ((Injector,), {"mro": 1}, "'mro'"),
        ((Injector,), {"__init__": print}, "no instances"),
        ((Injector,), {"a": this}, "`this` alone"),
        ((Plain, int), {}, "must be declarations, got int"),
    ],
)
def test_what_cannot_be_declared(bases: tuple[Any, ...], body: dict[str, Any], words: str) -> None:
    with pytest.raises(DependencyError, match=words):
        Declaration("Wrong", bases, body)


def test_inheritance_overrides_and_composition_puts_together() -> None:
    class Child(Plain):
        scaling_init = 1.0

    class Sized(Injector):
        shape = (4, 1)
        scaling_init = 2.0

    class Composed(Sized, Plain):
        pass

    made: Any = Child.tensor_quant
    assert made.scaling_impl.scaling_init == 1.0
    composed: Any = Composed.tensor_quant
    assert (composed.scaling_impl.scaling_init, composed.scaling_impl.shape) == (2.0, (4, 1))  # the first base counts
    assert Plain.scaling_init == 0.1


def test_functions_look_at_attributes_and_at_the_module() -> None:
    made: Any = Put.let(module=7, is_clamped=True, per_channel=True).tensor_quant
    assert type(made) is Clamped
    assert made.scaling_impl.scaling_init == (7, (7, 1))
    shared: Any = Put.let(module=(3, 5), is_clamped=False, per_channel=False).tensor_quant
    assert type(shared) is Sign
    assert shared.scaling_impl.scaling_init == 5


def test_only_what_is_asked_for_is_resolved() -> None:
    lazy = Advanced.let(is_clamped=False, module=1)
    made: Any = lazy.let(per_channel=False).tensor_quant
    assert made.scaling_impl.scaling_init == (1, ())
    with pytest.raises(DependencyError, match=r"`channel_shape`, asked for by this\.channel_shape"):
        lazy.let(per_channel=True).tensor_quant  # noqa: B018
    assert lazy.let(per_channel=True, channel_shape=(4, 1)).scaling_shape == (4, 1)


def test_classes_stay_classes_under_names_that_say_so() -> None:
    assert Plain.let(proxy_class=Sign).proxy_class is Sign
    assert Injector.let(kind_class=this.proxy_class, proxy_class=Scale).kind_class is Scale


def test_links_follow_attributes_of_anything() -> None:
    class Outer(Injector):
        inner = Plain
        size = this.module.real
        number = this.inner.scaling_init

    assert Outer.number == 0.1
    assert Outer.inner is Plain
    assert Outer.let(module=3).size == 3
    with pytest.raises(DependencyError, match=r"this\.module\.real cannot be followed.*'str'.*'real'"):
        Outer.let(module="x").size  # noqa: B018


def test_an_error_names_class_attribute_chain_and_everything_that_is_missing() -> None:
    class Bare(Injector):
        tensor_quant = Both
        first = Scale

        @value
        def second(left: Any, right: Any) -> Any:
            return left, right

    with pytest.raises(DependencyError) as caught:
        Bare.tensor_quant  # noqa: B018
    assert str(caught.value) == "Bare.tensor_quant cannot be resolved; missing: " + "; ".join(caught.value.missing)
    assert caught.value.missing == (
        "`scaling_init`, asked for by Scale (tensor_quant -> first)",
        "`left`, asked for by second (tensor_quant -> second)",
        "`right`, asked for by second (tensor_quant -> second)",
        "`scaling_impl`, asked for by Both (tensor_quant)",
    )
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.missing) == (str(caught.value), caught.value.missing)
    with pytest.raises(DependencyError, match=r"Plain\.tensor_qant.*did you mean tensor_quant"):
        Plain.tensor_qant  # noqa: B018
    assert Bare.let(scaling_init=1, left=2, right=3, scaling_impl=4).second == (2, 3)  # nothing stays of a failure


def test_a_declaration_inside_another_is_in_the_chain() -> None:
    class Inner(Injector):
        scale = Scale

    class Outer(Injector):
        inner = Inner
        scaling_impl = this.inner.scale
        tensor_quant = Sign

    with pytest.raises(DependencyError, match=r"Inner\.scale.*`scaling_init`, asked for by Scale") as caught:
        Outer.scaling_impl  # noqa: B018
    assert "Outer.scaling_impl" in str(caught.value)


def test_what_a_component_raises_comes_with_the_chain() -> None:
    class Wrong(Plain):
        @value
        def scaling_init(signed: Any = 0) -> Any:
            return 1 // signed

        @value
        def other(signed: Any = 0) -> Any:
            return signed.nothing

    with pytest.raises(ZeroDivisionError) as caught:
        Wrong.tensor_quant  # noqa: B018
    assert caught.value.__notes__[0] == "raised by scaling_init, for tensor_quant -> scaling_impl -> scaling_init"
    with pytest.raises(DependencyError, match=r"Wrong\.other: other raised AttributeError"):
        getattr(Wrong, "other", None)  # an AttributeError would be taken for an attribute that is not there


@given(st.integers(1, 6), st.sampled_from(["link", "function", "class"]))
def test_a_circle_is_named(length: int, kind: str) -> None:
    names = [f"a{i}" for i in range(length)]
    body: dict[str, Any] = {}
    for name, after in zip(names, [*names[1:], names[0]], strict=True):
        space: dict[str, Any] = {}
        exec(f"def asks({after}): return {after}\nclass Asks:\n def __init__(self, {after}): pass", space)
        body[name] = {"link": getattr(this, after), "function": value(space["asks"]), "class": space["Asks"]}[kind]
    circle = Injector.let(**body, start=this.a0)
    with pytest.raises(DependencyError) as caught:
        circle.start  # noqa: B018
    assert str(caught.value).endswith(": circular wiring, " + " -> ".join([*names, names[0]]))
    assert not caught.value.missing


def test_a_circle_through_the_declaration_itself_is_named() -> None:
    class Self(Injector):
        @value
        def a() -> Any:
            return Self.b

        @value
        def b() -> Any:
            return Self.a

    with pytest.raises(DependencyError, match="circular wiring, a -> b -> a"):
        Self.a  # noqa: B018


def test_only_functions_are_values() -> None:
    for wrong in (Scale, 3, functools.partial(print)):
        with pytest.raises(TypeError, match="decorates a function"):
            value(wrong)


@pytest.mark.parametrize("declaration", [Plain, Plain.let(scaling_init=2), Put.let(module=1).let(is_clamped=this.yes)])
def test_declarations_are_copied_and_pickled(declaration: Any) -> None:
    assert copy.deepcopy(declaration) is declaration
    again: Any = pickle.loads(pickle.dumps(declaration))
    assert repr(again) == repr(declaration)
    assert set(again) == set(declaration)
    if declaration is Plain:
        assert again is Plain
    else:
        assert again.let(yes=True, per_channel=False).tensor_quant.scaling_impl.scaling_init in (2, (1, ()))


def test_names_that_mean_something() -> None:
    known = known_names(Put, set())
    assert {"tensor_quant", "is_clamped", "module", "per_channel", "channel_shape", "shape", "scaling_init"} <= known
    assert "clamped" not in known
    assert "channel_shape" in known_names(Advanced, set())  # in a branch that may not be taken
    assert "isinstance" not in known


def test_a_description_shows_what_came_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    class Local(Plain):
        scaling_init = 0.5

    describe(Local.let(signed=False), "tensor_quant")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Local.let(signed=False)"
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    for line, (indent, start, origin, source) in zip(
        shown[1:],
        [
            ("  ", "tensor_quant = Sign", "Plain", "    tensor_quant = Sign"),
            ("    ", "scaling_impl = Scale", "Plain", "    scaling_impl = Scale"),
            ("      ", "scaling_init = 0.5", "Local", "        scaling_init = 0.5"),
            ("      ", "shape = ()", "default", ""),
            ("    ", "signed = False", "let", ""),
            ("    ", "steps = 0", "default", ""),
        ],
        strict=True,
    ):
        place = f"{origin}, {__file__}:{lines.index(source) + 1}" if source else origin
        assert line == f"{indent}{start}  <- {place}"


def test_a_description_shows_what_is_missing_and_circles(capsys: pytest.CaptureFixture[str]) -> None:
    describe(Put.let(is_clamped=True, a=this.b, b=this.a))
    shown = capsys.readouterr().out
    assert "  tensor_quant = not resolved" in shown
    assert "module = missing" in shown
    assert "circular wiring, a -> b -> a" in shown

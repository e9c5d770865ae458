"""Declarations that assemble themselves: attributes are matched to constructor arguments by name.

A declaration is a subclass of `Injector`. It is data: it cannot be instantiated or changed, and nothing of an access is
kept in it.

    class MyQuantizer(Injector):
        tensor_quant = BinaryQuant          # BinaryQuant(scaling_impl, signed=True) is called with what stands here
        scaling_impl = ParameterScaling     # ParameterScaling(scaling_init)
        scaling_init = 0.1

    MyQuantizer.tensor_quant                # a new BinaryQuant at every access

What an attribute is, decides what an access gives:

- a class: an instance. Its arguments come from the attributes of their names, and where there is none from their
  defaults; ``*args`` and ``**kwargs`` get nothing. Under a name that ends in ``_class`` the class itself.
- a function under `value`: what it returns, with arguments found in the same way. A class or `this` that it returns
  is wired in turn.
- ``this.a``, ``this.a.b``: what the attribute ``a`` gives, and of that ``b``.
- another declaration, and anything else: itself.

Only what is asked for is resolved, so an attribute that nobody needs may be missing. In one access everything is made
once: two who ask for the same name get the same object.
"""

import copyreg
import dis
import inspect
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from difflib import get_close_matches
from itertools import pairwise
from operator import methodcaller
from types import MappingProxyType
from typing import Any, NoReturn

# Who asks for whom, over all declarations: a circle shows here before Python runs out of stack
_CHAIN: ContextVar[tuple[tuple["Declaration", str], ...]] = ContextVar("_CHAIN", default=())


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class DependencyError(Exception):
    """A declaration that cannot be resolved, or was used as what it is not.

    Attributes:
        missing: one line for each argument that nothing gives, with who asked for it.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message, missing)
        self.missing = missing

    def __str__(self) -> str:
        return str(self.args[0])


class Value:
    """A function that gives an attribute; see `value`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return f"@value {self.function.__name__}"


def value(function: Callable[..., Any]) -> Any:
    """Decorator of a function whose arguments are attributes of the declaration, and whose result is this attribute's.

    Raises:
        TypeError: no function.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"`value` decorates a function, got {function!r}")
    return Value(function)


class This:
    """The attribute of a declaration that the names say, one after the other; see `this`."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getattr__(self, name: str) -> "This":
        if name.startswith("_"):
            raise AttributeError(name)
        return This(*self._names, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return This, self._names

    def __repr__(self) -> str:
        return ".".join(("this", *self._names))


this = This()


class Declaration(type):
    """The class of declarations, which are classes themselves."""

    __declared__: Mapping[str, Any]
    __overrides__: bool

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> "Declaration":
        """Keeps the attributes aside, so that every access to one of them is resolved."""
        if own := sorted({"let", "mro"} & body.keys()):
            raise DependencyError(f"an attribute of {name} must not be called '{own[0]}': declarations have it")
        for base in bases:
            if not isinstance(base, Declaration):
                raise DependencyError(f"the bases of {name} must be declarations, got {base.__name__}")
        declared = {key: given for key, given in body.items() if not _is_special(key)}
        for key, given in declared.items():
            if isinstance(given, This) and not given._names:
                raise DependencyError(f"`{key}` of {name} must be an attribute of `this`, got `this` alone")
        kept = {key: given for key, given in body.items() if _is_special(key)}
        if "__init__" in kept or "__new__" in kept:
            raise DependencyError(f"{name} must not define __init__ or __new__: declarations have no instances")
        kept["__declared__"] = MappingProxyType(declared)
        kept.setdefault("__overrides__", False)
        return super().__new__(cls, name, bases, kept)

    def __getattr__(cls, name: str) -> Any:
        """What the attribute gives, made anew.

        Raises:
            DependencyError: there is none of this name, or something that it needs is missing or asks for itself.
        """
        if name.startswith("_") and name not in cls:
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}")
        return Resolution(cls, name).root()

    def __contains__(cls, name: str) -> bool:
        return any(name in base.__declared__ for base in _bases(cls))

    def __iter__(cls) -> Iterator[str]:
        """The names of all attributes, those of the class itself first."""
        return iter(dict.fromkeys(name for base in _bases(cls) for name in base.__declared__))

    def __dir__(cls) -> list[str]:
        return [*cls, *super().__dir__()]

    def __setattr__(cls, name: str, given: Any) -> None:
        if not _is_special(name):
            raise DependencyError(f"{cls.__name__} cannot be changed; {cls.__name__}.let({name}=...) is a new one")
        super().__setattr__(name, given)

    def __delattr__(cls, name: str) -> None:
        raise DependencyError(f"{cls.__name__} cannot be changed: `{name}` stays")

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise DependencyError(f"{cls.__name__} is a declaration and has no instances; ask for its attributes")

    def __repr__(cls) -> str:
        if not cls.__overrides__:
            return cls.__name__
        changed = [base for base in _bases(cls) if base.__overrides__]
        merged = {name: given for base in reversed(changed) for name, given in base.__declared__.items()}
        given = ", ".join(f"{name}={reprlib.repr(given)}" for name, given in merged.items())
        return re.sub(r"\s+", " ", f"{cls.__name__}.let({given})")

    def let(cls, **overrides: Any) -> "Declaration":
        """A declaration that has these attributes, and the others from this one. It can be pickled if this one can."""
        return Declaration(cls.__name__, (cls,), _named_as(cls) | overrides)


class Injector(metaclass=Declaration):
    """The base of declarations; see the module."""


ExtendedInjector = Injector


class Resolution:
    """One access to an attribute: what was made on the way, and what was asked for.

    Attributes:
        asked: the names that somebody asked for, whether they were there or not.
        trace: for `describe`: depth, name, the class that declares it (None for a default), and what it gave.
    """

    def __init__(self, declaration: Declaration, name: str) -> None:
        self.declaration, self.name = declaration, name
        self.asked: set[str] = set()
        self.trace: list[list[Any]] = []
        self._made: dict[str, Any] = {}
        self._depth = 0

    def root(self) -> Any:
        """What the attribute gives. Raises as `Declaration.__getattr__`."""
        return self._of(self.name, "")

    def _of(self, name: str, asker: str) -> Any:
        chain, step = _CHAIN.get(), (self.declaration, name)
        if step in chain:
            circle = " -> ".join(self._names([*chain[chain.index(step) :], step]))
            raise DependencyError(f"{self._title()}: circular wiring, {circle}")
        if name not in self.declaration:
            self.trace.append([self._depth, name, None, _MISSING])
            raise self._missing([self._line(name, asker)])
        base = next(base for base in _bases(self.declaration) if name in base.__declared__)
        entry = [self._depth, name, base, self._made.get(name, _MISSING)]
        self.trace.append(entry)
        if name not in self._made:
            token = _CHAIN.set((*chain, step))
            self._depth += 1
            try:
                self._made[name] = entry[-1] = self._resolved(name, base.__declared__[name])
            finally:
                self._depth -= 1
                _CHAIN.reset(token)
        return self._made[name]

    def _resolved(self, name: str, given: Any) -> Any:
        if isinstance(given, Value):
            given = self._called(given.function)
        if isinstance(given, This):
            return self._linked(given)
        is_component = isinstance(given, type) and not isinstance(given, Declaration)
        return self._called(given) if is_component and not name.endswith("_class") else given

    def _linked(self, link: This) -> Any:
        first, *rest = link._names
        self.asked.add(first)
        found = self._of(first, repr(link))
        for name in rest:
            try:
                found = getattr(found, name)
            except AttributeError as error:
                raise DependencyError(f"{self._title()}: {link!r} cannot be followed: {error}") from error
        return found

    def _called(self, component: Callable[..., Any]) -> Any:
        """A class or function called with what the declaration has for its arguments."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        missing: list[str] = []
        for parameter in _parameters(component):
            name = parameter.name
            self.asked.add(name)
            if name in self.declaration or parameter.default is inspect.Parameter.empty:
                try:
                    found = self._of(name, component.__name__)
                except DependencyError as error:
                    if not error.missing:
                        raise
                    missing += error.missing
                    continue
            else:
                found = parameter.default
                self.trace.append([self._depth, name, None, found])
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(found)
            else:
                keywords[name] = found
        if missing:
            raise self._missing(missing)
        try:
            return component(*positional, **keywords)
        except AttributeError as error:  # which `getattr` and modules would take for an attribute that is not there
            raise DependencyError(f"{self._title()}: {component.__name__} raised AttributeError: {error}") from error
        except Exception as error:
            error.add_note(f"raised by {component.__name__}, for {' -> '.join(self._names(_CHAIN.get()))}")
            raise

    def _missing(self, lines: list[str]) -> DependencyError:
        unique = tuple(dict.fromkeys(lines))
        return DependencyError(f"{self._title()} cannot be resolved; missing: {'; '.join(unique)}", unique)

    def _line(self, name: str, asker: str) -> str:
        """A missing name and who asked for it, or what there is in its place."""
        chain = " -> ".join(self._names(_CHAIN.get()))
        if asker:
            return f"`{name}`, asked for by {asker} ({chain})"
        near = ", ".join(get_close_matches(name, list(self.declaration), n=3))
        return f"`{name}`" + (f", did you mean {near}?" if near else "")

    def _names(self, steps: Any) -> list[str]:
        """Steps of a chain: names, with their declaration where that is another one."""
        return [name if owner is self.declaration else f"{owner.__name__}.{name}" for owner, name in steps]

    def _title(self) -> str:
        return f"{self.declaration!r}.{self.name}"


def known_names(declaration: Declaration, asked: set[str]) -> set[str]:
    """Every name that means something to a declaration: what it has, or what somebody in it may ask for.

    Args:
        asked: by a `Resolution`, to which classes that functions return have become known.
    """
    known = {*declaration, *asked}
    for base in _bases(declaration):
        for given in base.__declared__.values():
            if isinstance(given, This):
                known.add(given._names[0])
            elif isinstance(given, Value):
                known.update(p.name for p in _parameters(given.function))
                known.update(_asked_of_this(given.function))
            elif isinstance(given, type) and not isinstance(given, Declaration):
                known.update(p.name for p in _parameters(given))
    return known


def describe(declaration: Declaration, attribute: str | None = None) -> None:
    """Prints what a declaration gives: the graph, and for everything in it the class, file and line that says so.

    Args:
        declaration: of a layer as well, with ``declaration.let(module=layer)``. What is missing is shown as missing.
        attribute: this one with all that it needs; None for all, those that nothing else asks for first.
    """
    resolutions = [Resolution(declaration, name) for name in ([attribute] if attribute else declaration)]
    problems: list[str] = []
    for resolution in resolutions:
        try:
            resolution.root()
        except Exception as error:  # shown below: a graph with a hole in it is what one looks at
            if not getattr(error, "missing", ()):
                problems.append(f"  {type(error).__name__}: {error}")
    print(repr(declaration))
    asked = {name for resolution in resolutions for name in resolution.asked}
    shown: set[str] = set()
    for resolution in sorted(resolutions, key=lambda resolution: resolution.name in asked):
        if resolution.name in shown:
            continue
        for depth, name, base, found in resolution.trace:
            shown.add(name)
            print(f"{'  ' * (depth + 1)}{name} = {_shown(found, base, name)}")
    for line in dict.fromkeys(problems):
        print(line)


_MISSING = object()


def _parameters(component: Callable[..., Any]) -> list[inspect.Parameter]:
    """What can be given to a class or function by name; nothing where Python does not know."""
    try:
        found = inspect.signature(component).parameters.values()
    except ValueError:  # of some classes written in C
        return []
    return [parameter for parameter in found if not parameter.kind.name.startswith("VAR_")]


def _asked_of_this(function: Any) -> set[str]:
    """What a function asks of `this`, in branches that it does not take as well."""
    steps = pairwise(dis.get_instructions(function))
    return {after.argval for before, after in steps if before.argval == "this" and isinstance(after.argval, str)}


def _bases(declaration: Declaration) -> list[Declaration]:
    return [base for base in declaration.__mro__ if isinstance(base, Declaration)]


def _named_as(declaration: Declaration) -> dict[str, Any]:
    """What makes a declaration known under the name of another."""
    return {
        "__module__": declaration.__module__,
        "__qualname__": declaration.__qualname__,
        "__doc__": declaration.__doc__,
        "__overrides__": True,
    }


def _shown(found: Any, base: Declaration | None, name: str) -> str:
    """A value and where it comes from, in one line; of a component its class, since its parts stand below it."""
    if base is None:
        return "missing" if found is _MISSING else f"{reprlib.repr(found)}  <- default"
    text = "not resolved" if found is _MISSING else reprlib.repr(found)
    plain = not text.startswith("<") and "\n" not in text
    return f"{text if plain or found is _MISSING else type(found).__name__}  <- {_origin(base, name)}"


def _origin(declaration: Declaration, name: str) -> str:
    """Which class says what an attribute is, and where that stands."""
    if declaration.__overrides__:
        return "let"
    try:
        lines, first = inspect.getsourcelines(declaration)
        file = inspect.getsourcefile(declaration)
    except (OSError, TypeError):  # typed into an interpreter
        return declaration.__name__
    says = re.compile(rf"\s+(def\s+)?{re.escape(name)}\s*[:=(]")
    return f"{declaration.__name__}, {file}:{first + next((i for i, line in enumerate(lines) if says.match(line)), 0)}"


def _reduced(declaration: Declaration) -> Any:
    """For pickle: a name that can be imported, or for what `let` made, of what and with what."""
    if declaration.__overrides__:
        return methodcaller("let", **declaration.__declared__), (declaration.__base__,)
    return declaration.__qualname__


copyreg.pickle(Declaration, _reduced)  # which pickle asks before it takes a class for a name

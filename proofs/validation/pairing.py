"""Which module of a JAX model is which of a torch model: by names, then by shapes and order.

1. Names that become the same by `plain_name` are the same: case, separators and the usual words for one thing
   (``q_proj``, ``query``; ``norm``, ``LayerNorm``, ``ln``; ``layer_0``, ``layers.0``, ``h.0``) are evened out.
2. Layers that are left are paired by the kind of layer and the size of their weights, in order of execution, where
   either model has as many of them.
3. A module that is left and holds the partners of what another holds, and nothing else, is its partner.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .results import ValidationError

Key = TypeVar("Key")

WORDS = {  # the usual words for one thing
    "query": "q wq query q_proj q_lin to_q query_proj",
    "key": "k wk key k_proj k_lin to_k key_proj",
    "value": "v wv value v_proj v_lin to_v value_proj",
    "projection": "o wo o_proj out_proj out_lin c_proj to_out proj",
    "norm": "norm layernorm layer_norm ln rmsnorm rms_norm",
    "attention": "attention attn self_attn self_attention mha",
    "mlp": "mlp ffn feed_forward feedforward ff",
    "up": "fc1 lin1 linear1 up_proj wi c_fc",
    "down": "fc2 lin2 linear2 down_proj wo_0",
    "blocks": "blocks block layers layer h",
    "words": "word_embeddings wte embed_tokens token_embedding tok_embeddings word_embedding",
    "positions": "position_embeddings wpe embed_positions position_embedding pos_embedding pos_embed",
    "types": "token_type_embeddings token_type_embedding type_embed segment_embeddings",
    "convolution": "conv convolution",
    "linear": "linear dense lin",
}
WORD_OF = {word: name for name, words in WORDS.items() for word in words.split()}
WRAPPERS = frozenset(("module", "model", "layers_list", "params", "net", "network"))
KINDS = ("conv", "linear", "dense", "embed", "norm", "attention", "lstm", "gru", "rnn", "dropout", "pool")


@dataclass(frozen=True)
class Part:
    """A module as pairing sees it: its class, the shapes of its own parameters, whether it holds other modules."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    leaf: bool

    @property
    def sort(self) -> tuple[str, tuple[int, ...]]:
        """Kind of layer, and the sizes of the axes of its largest parameter, which no layout changes."""
        name = self.kind.lower()
        kind = next((kind for kind in KINDS if kind in name), name)
        largest = max(self.shapes, key=_size, default=())
        return ("linear" if kind == "dense" else kind), tuple(sorted(largest))


def plain_name(path: str) -> str:
    """A path with its usual words evened out: ``h_0.attn.q_proj`` and ``layers.0.self_attn.query`` are the same."""
    found: list[str] = []
    for part in path.split("."):
        part = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower() if not part.isupper() else part.lower()
        if part in WORD_OF:
            found.append(WORD_OF[part])
            continue
        name, _, number = part.rpartition("_") if re.search(r"_\d+$", part) else (part, "", "")
        stem = re.sub(r"\d+$", "", name) if not number else name
        digits = number or name[len(stem) :]
        found += [WORD_OF.get(stem, stem), *([digits] if digits else [])]
    return ".".join(word for word in found if word and word not in WRAPPERS)


def paired(
    torch_parts: Mapping[str, Part],
    jax_parts: Mapping[str, Part],
    given: Mapping[str, str] | None = None,
    order: Callable[[], tuple[Sequence[str], Sequence[str]]] | None = None,
) -> dict[str, str]:
    """Path in torch to path in JAX; the models themselves, "", are a pair.

    Args:
        torch_parts, jax_parts: modules by path.
        given: pairs that are known; nothing else is said of these paths.
        order: gives the paths of both in order of execution; asked only where names leave layers over.
    Raises:
        ValidationError: a given path that is none, partners of different size, or no layer with a partner.
    """
    found = {"": ""} | dict(given or {})
    _check_given(found, torch_parts, jax_parts)
    _by_name(found, torch_parts, jax_parts)
    left = [
        [p for p, part in parts.items() if part.leaf and p not in taken]
        for parts, taken in _sides(found, torch_parts, jax_parts)
    ]
    if all(left) and order is not None:
        _by_order(found, torch_parts, jax_parts, *order())
    _by_contents(found, torch_parts, jax_parts)
    leaves = [[p for p, part in parts.items() if part.leaf and p and part.shapes] for parts in (torch_parts, jax_parts)]
    if all(leaves) and not any(path in found for path in leaves[0]):
        names = " and ".join(f"{', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}" for paths in leaves)
        raise ValidationError(f"the models cannot be paired: no layer of one is like a layer of the other, got {names}")
    for here, there in found.items():
        if here:
            _check_sizes(here, torch_parts[here], there, jax_parts[there])
    return found


def _sides(
    found: Mapping[str, str], torch_parts: Mapping[str, Part], jax_parts: Mapping[str, Part]
) -> tuple[tuple[Mapping[str, Part], set[str]], tuple[Mapping[str, Part], set[str]]]:
    return (torch_parts, set(found)), (jax_parts, set(found.values()))


def _check_given(found: Mapping[str, str], torch_parts: Mapping[str, Part], jax_parts: Mapping[str, Part]) -> None:
    for name, paths, parts in (("torch", found, torch_parts), ("JAX", found.values(), jax_parts)):
        unknown = [path for path in paths if path and path not in parts]
        if unknown:
            raise ValidationError(f"`pairs` must name modules of the {name} model, got {unknown[0]!r}")
    if len(set(found.values())) < len(found):
        raise ValidationError("`pairs` must name a module of the JAX model once")


def _by_name(found: dict[str, str], torch_parts: Mapping[str, Part], jax_parts: Mapping[str, Part]) -> None:
    """Where exactly one free module of either model has a name; first as it stands, then evened out."""
    for name_of in (str, plain_name, _from_first_number):
        here, there = (
            _grouped((path for path in parts if path and path not in taken), name_of)
            for parts, taken in _sides(found, torch_parts, jax_parts)
        )
        for name, paths in here.items():
            partners = there.get(name, [])
            if len(paths) == len(partners) == 1 and torch_parts[paths[0]].leaf == jax_parts[partners[0]].leaf:
                found[paths[0]] = partners[0]


def _from_first_number(path: str) -> str:
    """What lies around a stack of blocks has many names."""
    words = plain_name(path).split(".")
    return ".".join(words[next((i for i, word in enumerate(words) if word.isdigit()), 0) :])


def _grouped(paths: Iterable[str], name_of: Callable[[str], Key]) -> dict[Key, list[str]]:
    groups: dict[Key, list[str]] = defaultdict(list)
    for path in paths:
        groups[name_of(path)].append(path)
    return groups


def _by_order(
    found: dict[str, str],
    torch_parts: Mapping[str, Part],
    jax_parts: Mapping[str, Part],
    in_torch: Sequence[str],
    in_jax: Sequence[str],
) -> None:
    """Layers of one kind and size, as often in either model, one after the other."""
    taken = set(found.values())
    here = _grouped(
        (p for p in in_torch if p and torch_parts[p].leaf and p not in found), lambda p: torch_parts[p].sort
    )
    there = _grouped((p for p in in_jax if p and jax_parts[p].leaf and p not in taken), lambda p: jax_parts[p].sort)
    for sort, paths in here.items():
        if sort[1] and len(paths) == len(there.get(sort, ())):
            found |= dict(zip(paths, there[sort], strict=True))


def _by_contents(found: dict[str, str], torch_parts: Mapping[str, Part], jax_parts: Mapping[str, Part]) -> None:
    """Modules that hold the same pairs; of several around the same the outermost come together."""
    layers = {here: there for here, there in found.items() if here and torch_parts[here].leaf}
    held: dict[frozenset[str], list[str]] = defaultdict(list)
    for path, part in jax_parts.items():
        if path and not part.leaf and path not in found.values():
            held[frozenset(there for there in layers.values() if there.startswith(f"{path}."))].append(path)
    for path, part in torch_parts.items():
        if path and not part.leaf and path not in found:
            inside = frozenset(there for here, there in layers.items() if here.startswith(f"{path}."))
            partners = held.get(inside, [])
            if inside and len(partners) == 1:
                found[path] = partners.pop()


def _check_sizes(here: str, in_torch: Part, there: str, in_jax: Part) -> None:
    sizes = [max(map(_size, part.shapes), default=0) for part in (in_torch, in_jax)]
    if in_torch.leaf and all(sizes) and sizes[0] != sizes[1]:
        a, b = (max(part.shapes, key=_size) for part in (in_torch, in_jax))
        raise ValidationError(
            f"{here!r} and {there!r} cannot be a pair: the largest weight of one has shape {a}, that of the other {b}; "
            "say which modules belong together by `pairs`"
        )


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size

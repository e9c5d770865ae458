"""The sentence encoder: two frameworks, one embedding; tokens as WordPiece has them; the published weights if there."""

from importlib.util import find_spec

import numpy as np
import pytest

from samebits.proofs.inputs import minilm, minilm_jax, minilm_torch

CLOSE = 1e-6  # what is allowed between float embeddings of two frameworks, element by element; measured: 2e-7
PIECES = {
    p: i for i, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##happi", "##ness", "un", "!", "中", "cafe"])
}
INSTALLED = pytest.mark.skipif(find_spec(minilm.PACKAGE) is None, reason="all-MiniLM-L6-v2 is not installed")


def embeddings(shape: minilm.Shape, tensors: dict[str, minilm.Array], batch: minilm.Batch) -> list[minilm.Array]:
    return [room.embed(room.encoder(shape, tensors), batch) for room in (minilm_torch, minilm_jax)]


def test_two_frameworks_embed_alike() -> None:
    a, b = embeddings(minilm.SMALL, minilm.random_tensors(), minilm.random_batch())
    assert np.abs(a - b).max() <= CLOSE
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("room", [minilm_torch, minilm_jax])
def test_padding_changes_nothing_beyond_rounding(room: object) -> None:
    batch = minilm.random_batch()
    longer = minilm.Batch(*(np.pad(part, ((0, 0), (0, 5))) for part in batch))
    network = room.encoder(minilm.SMALL, minilm.random_tensors())  # type: ignore[attr-defined]
    a, b = (room.embed(network, one) for one in (batch, longer))  # type: ignore[attr-defined]
    assert np.abs(a - b).max() <= CLOSE


def test_tensors_have_the_shapes_that_are_stated() -> None:
    drawn = minilm.random_tensors()
    assert {name: tensor.shape for name, tensor in drawn.items()} == minilm.shapes(minilm.SMALL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("unhappiness!", [7, 5, 6, 8]),
        ("UN\tun", [7, 7]),
        ("Café中", [10, 9]),
        ("unhappy", [1]),  # no piece for the rest: the whole word is unknown
        ("u" * 101, [1]),
    ],
)
def test_words_become_their_longest_pieces(text: str, expected: list[int]) -> None:
    assert minilm.tokens(text, PIECES) == [2, *expected, 3]


def test_batches_are_cut_and_filled_up() -> None:
    batch = minilm.batch(["un un un un", "!"], PIECES, longest=4)
    assert batch.ids.tolist() == [[2, 7, 7, 3], [2, 8, 3, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True] * 3 + [False]]


def test_sentences_are_sentences() -> None:
    found = minilm.sentences(200)
    assert len(set(found)) == 200
    assert all(one.endswith(".") for one in found)
    with pytest.raises(ValueError, match="`count` must be at most"):
        minilm.sentences(10**6)


@INSTALLED
def test_the_published_weights() -> None:
    shape, tensors = minilm.shape_of(), minilm.tensors()
    assert {name: tensor.shape for name, tensor in tensors.items()} == minilm.shapes(shape)
    assert shape == minilm.Shape()
    pieces = minilm.vocabulary()
    # as the tokenizer file of the package itself gives them, read by the library tokenizers 0.22
    assert minilm.tokens("don't", pieces) == [101, 2123, 1005, 1056, 102]
    a, b = embeddings(shape, tensors, minilm.batch(minilm.sentences(16), pieces))
    assert np.abs(a - b).max() <= CLOSE


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"samebits\[minilm\]"):
        minilm.folder()

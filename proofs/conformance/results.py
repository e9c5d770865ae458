"""Answers of another implementation to test vectors, read from a text file or a safetensors file.

A text file holds, for each table that was answered, a line ``section TABLE COLUMN ...`` and then one line for each row
of the table, in its order: the bits of the numbers in hexadecimal. Arrays stand one number behind the other.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .vector_files import VectorError, load_tensors
from .vectors import DTYPES, Column, Section

Array = NDArray[Any]
Answers = dict[str, dict[str, Array]]  # by table and column, shape (rows, count)


def parse(path: Path, tables: Mapping[str, Section]) -> Answers:
    """`parse_tensors` of a file whose name ends with ``.safetensors``, else `parse_text`."""
    return parse_tensors(path, tables) if path.suffix == ".safetensors" else parse_text(path, tables)


def parse_text(path: Path, tables: Mapping[str, Section]) -> Answers:
    """Answers by table and column, from a text file.

    A line ``section TABLE COLUMN ...`` begins a table; then one line a row, cells as in the vectors, leading zeros and
    ``0x`` not needed; ``#`` begins a remark. Cells of dashes stand for no answer, which is one where none is expected.

    Raises:
        VectorError: with the number of the line: an unknown table or column, one given twice, what is no hexadecimal
            number or has too many digits, another number of cells or rows.
    """
    found: dict[str, dict[str, Array]] = {}
    current: list[Column] = []
    table, rows = "", list[list[str]]()
    places = list[int]()
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise VectorError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise VectorError(f"{path}: neither text in ASCII nor a .safetensors file") from None
    for number, line in enumerate([*lines, "section"], 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "section":
            if table:
                found[table] = _cells(path, tables[table], current, rows, places)
            if number > len(lines):
                break
            table, current = _heading(f"{path}:{number}", words, tables, found)
            rows, places = [], []
        elif not table:
            raise VectorError(f"{path}:{number}: a row before the first line 'section TABLE COLUMN ...'")
        else:
            rows.append(words)
            places.append(number)
    return found


def _heading(
    place: str, words: Sequence[str], tables: Mapping[str, Section], found: Mapping[str, object]
) -> tuple[str, list[Column]]:
    """The table and the columns that a line announces."""
    table, names = (words[1] if len(words) > 1 else ""), words[2:]
    if table not in tables:
        raise VectorError(f"{place}: unknown section {table!r}; sections are {', '.join(tables)}")
    if table in found:
        raise VectorError(f"{place}: section {table} is there twice")
    expected = {c.name: c for c in tables[table].columns if c.role == "expected"}
    unknown = [name for name in names if name not in expected]
    if unknown or not names or len(set(names)) < len(names):
        got = " ".join(names) or "none"
        raise VectorError(f"{place}: columns of {table} are {', '.join(expected)}, each once, got {got}")
    return table, [expected[name] for name in names]


def _cells(
    path: Path, section: Section, columns: Sequence[Column], rows: Sequence[Sequence[str]], places: Sequence[int]
) -> dict[str, Array]:
    """The rows of a table as arrays of bits."""
    if len(rows) != section.rows:
        raise VectorError(f"{path}: section {section.name} must have {section.rows} rows, got {len(rows)}")
    widths = [c.count for c in columns]
    wrong = next((i for i, row in enumerate(rows) if len(row) != sum(widths)), None)
    if wrong is not None:
        raise VectorError(f"{path}:{places[wrong]}: {sum(widths)} cells are wanted, got {len(rows[wrong])}")
    found = {}
    for column, end in zip(columns, accumulate(widths), strict=True):
        dtype = _dtype(column.dtype)
        undefined = section.undefined.get(column.name)
        values = np.zeros((len(rows), column.count), f"u{dtype.itemsize}")
        for i, row in enumerate(rows):
            for j, cell in enumerate(row[end - column.count : end]):
                if undefined is not None and undefined[i]:
                    continue
                values[i, j] = _number(f"{path}:{places[i]}", cell, column)
        found[column.name] = values.view(dtype)
    return found


def _number(place: str, cell: str, column: Column) -> int:
    digits = 2 * _dtype(column.dtype).itemsize
    text = cell[2:] if cell[:2] in ("0x", "0X") else cell
    if not text or set(text) - set("0123456789abcdefABCDEF"):
        raise VectorError(f"{place}: {cell!r} is no hexadecimal number of {digits} digits ({column.name})")
    if len(text) > digits:
        raise VectorError(f"{place}: {cell!r} has {len(text)} digits, {column.name} of {column.dtype} has {digits}")
    return int(text, 16)


def parse_tensors(path: Path, tables: Mapping[str, Section]) -> Answers:
    """Answers by table and column, from a safetensors file with tensors ``TABLE/COLUMN``.

    Raises:
        VectorError: no such file or none of this kind; an unknown tensor; another dtype or shape than the vectors have.
    """
    found: dict[str, dict[str, Array]] = {}
    for name, values in load_tensors(path).items():
        table, _, column = name.rpartition("/")
        said = next((c for c in tables[table].columns if c.name == column), None) if table in tables else None
        if said is None or said.role != "expected":
            raise VectorError(f"{path}: unknown tensor {name!r}; tensors are SECTION/COLUMN, such as {_first(tables)}")
        shape = tables[table].data[column].shape
        if values.dtype.name != said.dtype or values.size != np.prod(shape) or len(values) != shape[0]:
            wanted = shape if tables[table].shape is not None else shape[:1]
            raise VectorError(
                f"{path}: {name} must be {said.dtype} of shape {wanted}, got {values.dtype} of shape {values.shape}"
            )
        found.setdefault(table, {})[column] = values.reshape(shape)
    return found


def _first(tables: Mapping[str, Section]) -> str:
    name, section = next(iter(tables.items()))
    return f"{name}/{next(c.name for c in section.columns if c.role == 'expected')}"


def _dtype(name: str) -> np.dtype[Any]:
    return DTYPES.get(name) or np.dtype(name)

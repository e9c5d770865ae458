"""The usual mistakes of a port in axes, heads, places and windows; as `mistakes`, of one step or of several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...core.requirements import explaining

with explaining(__name__):
    import torch
    from torch import Tensor
    from torch.nn import functional as F

from .mistakes import Found, changed, constant, other_args
from .tape import Change, Ref, Step, Tape

Changes = dict[int, Change]
Shape = tuple[int, ...]
VIEWS = ("view", "_unsafe_view", "reshape")


def places(tape: Tape, step: Step) -> Found:
    """Rows of a table, one too far; another row."""
    for by in (1, -1):
        word = f"off by one: places {by:+d}"
        if step.name == "embedding":
            rows = tape.values[step.args[0].number].shape[0]
            yield word, changed({1: _shifted(by, rows)})
        if step.name == "slice" and _is_table(tape, step) and len(step.args) > 3 and step.args[1] == 0:
            rows = tape.values[step.args[0].number].shape[0]
            begin, end = step.args[2] + by, min(step.args[3], rows) + by
            if begin >= 0 and end <= rows:
                yield word, _sliced(begin, end)
        if step.name == "arange":
            yield word, _more(by)
    if step.name == "select" and _is_table(tape, step):
        rows = tape.values[step.args[0].number].shape[step.args[1]]
        for row in range(min(rows, 8)):
            if row != step.args[2] % rows:
                name = tape.names.get(step.args[0].number, "the table")
                yield f"wrong row of {name}: {row} instead of {step.args[2]} (token type)", constant(2, row)


def _shifted(by: int, rows: int) -> Callable[[Any], Any]:
    return lambda places: (places + by).clamp(0, rows - 1)


def _sliced(begin: int, end: int) -> Change:
    return lambda step, args, kwargs: other_args(step, args, kwargs, {2: begin, 3: end})


def _more(by: int) -> Change:
    return lambda step, args, kwargs: step.op(*args, **kwargs) + by


def _is_table(tape: Tape, step: Step) -> bool:
    return isinstance(step.args[0], Ref) and step.args[0].number in tape.names


def windows(tape: Tape, step: Step) -> Found:
    """Padding as other libraries have it; the other kind of pooling."""
    if step.name == "convolution" and not step.args[6]:
        for name, sides in _paddings(tape, step):
            yield name, _padded(sides)
    if step.name == "avg_pool2d":
        yield "max pooling instead of mean", lambda s, a, k: F.max_pool2d(*a[:4])
        if len(step.args) > 3 and any(step.args[3]):
            counts = len(step.args) > 5 and not step.args[5]
            word = "counted" if counts else "not counted"
            yield f"padding convention: filled places are {word} in means", _counting(counts)
    if step.name == "max_pool2d_with_indices":
        yield "mean pooling instead of max", lambda s, a, k: F.avg_pool2d(*a[:4])


def _counting(padding: bool) -> Change:
    return lambda step, args, kwargs: step.op(*args[:4], args[4] if len(args) > 4 else False, padding)


def _paddings(tape: Tape, step: Step) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    x, w = (tape.values[step.args[i].number].shape[2:] for i in (0, 1))
    stride, explicit, dilation = step.args[3:6]
    if len(stride) != len(w):
        return
    reach = [(k - 1) * d + 1 for k, d in zip(w, dilation, strict=True)]
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(x, stride, reach, strict=True)]
    same = [(t // 2, t - t // 2) for t in total]
    own = [(p, p) for p in explicit]
    word = f"instead of {list(explicit)} on both sides"
    for name, sides in (
        (f"padding convention: SAME {same} {word}", same),
        (f"padding convention: SAME_LOWER {[(b, a) for a, b in same]} {word}", [(b, a) for a, b in same]),
        (f"padding convention: VALID {word}", [(0, 0) for _ in w]),
    ):
        if sides != own:
            yield name, sides


def _padded(sides: Sequence[tuple[int, int]]) -> Change:
    """A convolution with other padding."""

    def change(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        x = F.pad(args[0], [n for pair in reversed(sides) for n in pair])
        return other_args(s, args, kwargs, {0: x, 4: [0] * len(sides)})

    return change


def axes(tape: Tape, step: Step) -> Found:
    """A reshape where axes were to be swapped; heads split in another order; parts in another order."""
    if step.name in ("transpose", "permute"):
        shape = tape.values[step.outputs[0] or 0].shape
        yield "swapped axes: reshape instead of a transposition", lambda s, a, k: a[0].reshape(shape)
    if step.name in VIEWS and isinstance(step.args[0], Ref):
        before, after = tape.values[step.args[0].number].shape, tape.values[step.outputs[0] or 0].shape
        if len(after) == len(before) + 1 and after[:-2] == before[:-1]:
            yield (
                "wrong head order: heads are the inner axis of the split",
                lambda s, a, k: a[0].reshape(*before[:-1], after[-1], after[-2]).transpose(-1, -2).clone(),
            )
        if len(before) == len(after) + 1 and before[:-2] == after[:-1]:
            yield (
                "wrong head order: heads are the inner axis of the merge",
                lambda s, a, k: a[0].transpose(-1, -2).reshape(after),
            )
        if len(before) == 4 and len(after) == 2 and before[0] == after[0]:
            yield (
                "swapped axes: flattened with channels last",
                lambda s, a, k: a[0].permute(0, 2, 3, 1).reshape(after),
            )
    if step.name == "cat" and len(step.args[0]) > 1:
        yield "swapped parts of a concatenation", lambda s, a, k: s.op(list(reversed(a[0])), *a[1:], **k)
    if step.name in ("mean", "sum", "amax") and len(step.args) > 1 and isinstance(step.args[1], list):
        ndim = tape.values[step.args[0].number].ndim
        for axis in range(ndim) if len(step.args[1]) == 1 else ():
            if axis != step.args[1][0] % ndim:
                yield (
                    f"swapped axes: {step.name} over axis {axis} instead of {step.args[1][0] % ndim}",
                    constant(1, [axis]),
                )


def head_counts(tape: Tape, steps: Sequence[int]) -> Iterator[tuple[str, Changes]]:
    """Another number of heads: sizes of all views after the first split."""
    for number in steps:
        step = tape.steps[number]
        if step.name not in VIEWS or not isinstance(step.args[0], Ref):
            continue
        before, after = tape.values[step.args[0].number].shape, tape.values[step.outputs[0] or 0].shape
        if len(after) != len(before) + 1 or after[:-2] != before[:-1]:
            continue
        heads, size = after[-2:]
        for other in range(1, heads * size + 1):
            if other != heads and (heads * size) % other == 0:
                yield (
                    f"wrong head count: {other} instead of {heads}",
                    _resized(tape, steps, size, heads, other),
                )
        return


def _resized(tape: Tape, steps: Sequence[int], size: int, heads: int, other: int) -> Changes:
    """Changes of every view and expansion behind the first split, to what fits; and of the scale of scores."""

    def rescale(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        power = next((p for p in (0.5, 0.25, -0.5, -0.25) if abs(size**p - args[1]) < 1e-6), None)
        return s.op(*args, **kwargs) if power is None else s.op(args[0], (heads * size // other) ** power, **kwargs)

    found: Changes = {}
    for number in steps:
        step = tape.steps[number]
        if step.name in ("mul", "div") and isinstance(step.args[1], float):
            found[number] = rescale
        elif step.name in (*VIEWS, "expand") and isinstance(step.args[0], Ref):
            shapes = [tuple(tape.values[i].shape) for i in (step.args[0].number, step.outputs[0] or 0)]
            splits = shapes[1][-2:] == (heads, size) and shapes[1][:-2] == shapes[0][:-1]
            found[number] = _to(shapes[0], shapes[1], (other, heads * size // other) if splits else ())
    return found


def _to(before: Shape, after: Shape, split: Shape) -> Change:
    def change(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        now = tuple(args[0].shape)
        if split:
            sizes = (*now[:-1], *split)
        elif s.name == "expand":
            pairs = zip(now, before, after[-len(before) :], strict=True)
            sizes = after[: -len(before)] + tuple(n if b == a else a for n, b, a in pairs)
        else:
            sizes = _viewed(now, before, after)
        return s.op(args[0], list(sizes), **kwargs)

    return change


def _viewed(now: Shape, before: Shape, after: Shape) -> Shape:
    """The sizes of a view of another shape: axes go together whose products agree, the last of them takes the rest."""
    found, i, j = list[int](), 0, 0
    while j < len(after):
        begin, start, left, right = i, j, 1, 1
        while i < len(before) and (left != right or i == begin):
            left, i = left * before[i], i + 1
            while right < left and j < len(after):
                right, j = right * after[j], j + 1
        if j == start:  # axes of length 1
            right, j = right * after[j], j + 1
        total = prod(now[begin:i])
        *leading, last = after[start:j]
        found += [*leading, total // prod(leading) if total != prod(before[begin:i]) else last]
    return tuple(found)


def rotary(tape: Tape, steps: Sequence[int]) -> Iterator[tuple[str, Changes]]:
    """Pairs of halves instead of neighbours, and the reverse: the turned vector, and the angles beside it."""
    for kind, turned, angles, name in (
        ("cat", _by_neighbours, _to_neighbours, "interleaved rotary instead of half-split"),
        ("stack", _by_halves, _to_halves, "half-split rotary instead of interleaved"),
    ):
        found: Changes = {}
        for number in steps:
            step = tape.steps[number]
            if step.name == kind and (source := _turned_from(tape, step)) is not None:
                found[number] = turned(source)
        if found:
            yield name, found | _of_angles(tape, steps, found, angles)
            yield "rotary turns the other way", {n: lambda s, a, k: -s.op(*a, **k) for n in found}


def _turned_from(tape: Tape, step: Step) -> int | None:
    """The value whose halves or neighbours are put together, one of them negative."""
    parts = step.args[0]
    if len(parts) != 2 or not all(isinstance(part, Ref) for part in parts):
        return None
    first, second = (tape.makers.get(part.number) for part in parts)
    if first is None or second is None or tape.steps[first].name != "neg":
        return None
    return _whole(tape, tape.steps[second])


def _whole(tape: Tape, step: Step) -> int | None:
    while step.name in ("slice", "split", "select", "unsqueeze", "chunk"):
        number = step.args[0].number
        maker = tape.makers.get(number)
        if maker is None or tape.steps[maker].name not in ("slice", "split", "select", "chunk"):
            return int(number)
        step = tape.steps[maker]
    return None


def _by_neighbours(source: int) -> Change:
    def change(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        x = torch.cat([args[0][1], -args[0][0]], -1)
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)

    return change


def _by_halves(source: int) -> Change:
    def change(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        x = torch.stack([args[0][1], -args[0][0]], -1).flatten(-2)
        half = x.shape[-1] // 2
        y = torch.cat([-x[..., half:], x[..., :half]], -1)
        return y.reshape(*y.shape[:-1], half, 2)

    return change


def _to_neighbours(angle: Tensor) -> Tensor:
    return angle[..., : angle.shape[-1] // 2].repeat_interleave(2, -1)


def _to_halves(angle: Tensor) -> Tensor:
    return torch.cat([angle[..., ::2]] * 2, -1)


def _of_angles(tape: Tape, steps: Sequence[int], turned: Changes, angles: Callable[[Tensor], Tensor]) -> Changes:
    """Products with a cosine or sine: the factor that is not the vector is laid out anew."""
    vectors = {_whole(tape, tape.steps[tape.makers[tape.steps[n].args[0][1].number]]) for n in turned}
    made = {out for n in turned for out in tape.steps[n].outputs}
    for number in steps:  # what only moves the turned vector is it still
        step = tape.steps[number]
        if step.name in VIEWS and isinstance(step.args[0], Ref) and step.args[0].number in made:
            made |= set(step.outputs)
    found: Changes = {}
    for number in steps:
        step = tape.steps[number]
        if step.name != "mul" or not all(isinstance(arg, Ref) for arg in step.args[:2]):
            continue
        mine = [arg.number in vectors or arg.number in made for arg in step.args[:2]]
        if any(mine) and not all(mine):
            found[number] = changed({mine.index(False): angles})
    return found


def others_weights(tape: Tape, steps: Sequence[int]) -> Iterator[tuple[str, Changes]]:
    """The parameters of another module of the same shapes."""
    used = {
        arg.number for n in steps for arg in tape.steps[n].args if isinstance(arg, Ref) and arg.number in tape.names
    }
    homes = {tape.names[number].rpartition(".")[0] for number in used}
    by_name = {name: number for number, name in tape.names.items()}
    for home in homes if len(homes) == 1 else ():
        mine = {number: tape.names[number].removeprefix(f"{home}.") for number in used}
        for other in dict.fromkeys(name.rpartition(".")[0] for name in by_name):
            theirs = {number: by_name.get(f"{other}.{name}") for number, name in mine.items()}
            if other == home or any(
                v is None or tape.values[v].shape != tape.values[k].shape for k, v in theirs.items()
            ):
                continue
            yield f"weights of {other}", _exchanged(tape, steps, theirs)


def _exchanged(tape: Tape, steps: Sequence[int], theirs: Mapping[int, Any]) -> Changes:
    found: Changes = {}
    for number in steps:
        at = {
            i: tape.values[theirs[arg.number]]
            for i, arg in enumerate(tape.steps[number].args)
            if isinstance(arg, Ref) and arg.number in theirs
        }
        if at:
            found[number] = _with(at)
    return found


def _with(new: Mapping[int, Tensor]) -> Change:
    return lambda step, args, kwargs: other_args(step, args, kwargs, new)


RULES = (places, windows, axes)
OF_SEVERAL = (rotary, head_counts, others_weights)

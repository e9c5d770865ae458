"""`make mutants`: small faults in named modules, one at a time; do the tests nearest to the module notice?

Mutants are made by cosmic-ray, in a copy of the tree, and by `Overwrite` here, which it does not have. Of each module a
sample is drawn, reproducibly; tests run until the first failure, in the environment of `make test`. What was found is
kept in ``docs/mutants.json``, mutant by mutant, and `docs/mutants.md` is written from it. Survivors stay in the table:
killed by a test that was written later, equivalent (`tests/mutants_known.py` says why), or open.

    python -m tests.mutants --python .venv/bin/python                      a sample of every module
    python -m tests.mutants core/running.py --sample 40 --seed 3           of one
    python -m tests.mutants --again                                        those that survived, once more
    python -m tests.mutants --page                                         the page alone
"""

import argparse
import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

from .mutants_known import EQUIVALENT

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "mutants" / "tree"
RECORD, PAGE = ROOT / "docs" / "mutants.json", ROOT / "docs" / "mutants.md"
BEGIN, END = "<!-- begin -->", "<!-- end -->"
ROOMS = ("core", "torch_frontend", "jax_backend", "proofs")
SLOWER, LEAST = 3, 30  # a mutant may take so many times as long as no mutant, and so many seconds more
QUICK = "not compiled and not without_compiling and not digit"  # what takes seconds before it looks at anything
KEPT = ("killed", "killed later", "equivalent")

VERBS, TORCH, JAX, PROOFS = (
    "tests/verbs/test_",
    "tests/torch_frontend/test_",
    "tests/jax_backend/test_",
    "tests/proofs/",
)
NEAREST: dict[str, tuple[str, ...]] = {
    "core/running.py": (
        f"{VERBS}scale_sources.py::test_an_average_has_the_same_bits_everywhere",
        f"{VERBS}scale_sources.py::test_a_mean_is_the_mean",
        f"{VERBS}scale_windows.py::test_a_percentile_is_an_element_of_the_sorted_window_everywhere",
        f"{VERBS}scale_windows.py::test_of_equal_scales_the_oldest_comes_first_with_its_zero_point",
    ),
    "core/scaling.py": ("tests/core/test_qparams.py", "tests/core/test_scale_rules.py", f"{VERBS}block_scales.py"),
    "core/learned_sigma.py": (f"{VERBS}learned_sigma.py",),
    "core/accumulator.py": (f"{VERBS}accumulator.py", f"{VERBS}decoupled.py"),
    "torch_frontend/eager.py": (
        f"{TORCH}pieces.py",
        f"{TORCH}quantizer.py::test_layouts",
        f"{TORCH}quantizer.py::test_scalars_and_empty_arrays",
        f"{TORCH}formats.py::test_transposed_and_strided",
    ),
    "torch_frontend/eager_gradients.py": (f"{TORCH}pieces.py", f"{TORCH}eager_gradients.py"),
    "torch_frontend/exact.py": (
        f"{VERBS}contractions_at_the_bound.py::test_parts_of_torch_stay_exact",
        f"{VERBS}contractions_at_the_bound.py::test_int8_products_of_torch_fit_an_int32",
        f"{TORCH}layers.py",
    ),
    "torch_frontend/matmul.py": (f"{TORCH}layers.py", f"{TORCH}nn.py"),
    "torch_frontend/tensor_quantizer.py": (
        f"{VERBS}counts_of_training.py",
        f"{TORCH}nn.py",
    ),
    "jax_backend/layers.py": (
        f"{JAX}layers.py",
        f"{JAX}forward_mode.py::test_layers[codes]",
        f"{VERBS}convolutions.py::test_jax_has_the_bits_of_core",
    ),
    "jax_backend/exact.py": (  # the other tests of that file are torch's
        *(
            f"{VERBS}contractions_at_the_bound.py::test_{name}"
            for name in (
                "parts_of_jax_stay_exact",
                "a_window_of_more_places_than_a_part_may_hold_is_cut_too",
                "nan_stays_nan_in_every_part",
                "the_largest_sum_of_jax_is_refused_above_2_48",
            )
        ),
        f"{JAX}layers.py::test_long_contractions_are_exact",
    ),
    "jax_backend/interop/state.py": (f"{VERBS}interop.py",),
    "jax_backend/tensor_quantizer.py": (
        f"{VERBS}counts_of_training.py",
        f"{VERBS}scale_sources.py::test_learned_scales_may_start_at_a_value",
        f"{JAX}nn.py",
    ),
    "proofs/inputs/compare.py": (f"{PROOFS}inputs/test_compare.py",),
    "proofs/inputs/checkpoint.py": (
        f"{PROOFS}inputs/test_checkpoint.py",
        *(
            f"{PROOFS}check/test_check.py::test_{name}"
            for name in (
                "what_cannot_be_quantized_says_why",
                "damaged_files_are_refused_in_one_line",
                "missing_files_and_directories_are_refused",
            )
        ),
    ),
    "proofs/certificates/certificate.py": (
        f"{PROOFS}certificates/test_files.py",
        f"{PROOFS}certificates/test_certificates.py",
    ),
}
OPERATORS = (
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Pow_Mul")
    ),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("LShift_RShift", "RShift_LShift", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_FloorDiv", "BitXor_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "Gt_LtE")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("AddNot", "NumberReplacer", "ZeroIterationForLoop"),
)


@dataclass(frozen=True)
class Mutant:
    """A module with one change: the lines it takes away and puts there, and which of several such changes it is."""

    module: str
    before: str
    after: str
    number: int
    text: str

    @property
    def key(self) -> str:
        """What it is known by, wherever its lines have moved to."""
        return f"{self.module}: {self.before} => {self.after}" + (f" ({self.number + 1})" if self.number else "")


@dataclass(frozen=True)
class Outcome:
    """Of one mutant: ``killed``, ``survived`` or ``killed later``; which test noticed, or "time limit"."""

    module: str
    status: str
    by: str = ""


class Overwrite:
    """Adds nothing up: ``a += b`` becomes ``a = b``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where it applies."""
        if getattr(node, "value", None) in ("+=", "&=", "|="):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The node changed."""
        node.value = "="
        return node


def mutants(module: str) -> list[Mutant]:
    """Every mutant of a module that compiles and differs from it in more than annotations."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / module).read_text(encoding="utf-8")
    original, seen, found = _bare(source), Counter[str](), list[Mutant]()
    for operator in (*(get_operator(f"core/{name}")() for name in OPERATORS), Overwrite()):
        count = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
        for occurrence in range(count):
            text = mutate_code(source, operator, occurrence)
            if text is None or _bare(text) in (original, None):
                continue
            lines = list(unified_diff(source.split("\n"), text.split("\n"), n=0, lineterm=""))[2:]
            before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
            number = seen[f"{before} => {after}"]
            seen[f"{before} => {after}"] += 1
            found.append(Mutant(module, before, after, number, text))
    return found


def _bare(source: str) -> str | None:
    """A program without annotations; None where it is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Name("object")
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def copied() -> None:
    """The tree as git has it, in a folder of its own, where modules may be changed."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, TREE / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    links = TREE / "build" / "types" / "samebits"
    links.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        link = links / room
        link.unlink(missing_ok=True)
        link.symlink_to(TREE / room)


def tested(python: Path, files: Sequence[str], limit: float) -> tuple[str, str]:
    """``killed`` or ``survived``, and by which test; a run beyond the limit is killed."""
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", QUICK]
    command = [str(python), "-m", "pytest", *options, *files]
    environment = os.environ | {"PYTHONPATH": str(TREE / "build" / "types"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "killed", "time limit"
    named = [line.split()[1] for line in output.splitlines() if line.startswith(("FAILED", "ERROR")) and " " in line]
    return ("survived", "") if process.returncode == 0 else ("killed", named[0] if named else "import")


def run(python: Path, module: str, wanted: Sequence[Mutant], record: dict[str, Outcome]) -> None:
    """Each mutant of a module; the record is written after every one, so that an interrupted run loses one."""
    files, start = NEAREST[module], time.monotonic()
    status, by = tested(python, files, 3600)
    if status != "survived":
        raise SystemExit(f"{module}: its tests fail without a mutant: {by}")
    limit = LEAST + SLOWER * (time.monotonic() - start)
    for mutant in wanted:
        target = TREE / module
        try:
            target.write_text(mutant.text, encoding="utf-8")
            status, by = tested(python, files, limit)
        finally:
            target.write_bytes((ROOT / module).read_bytes())
        before = record.get(mutant.key)
        later = before is not None and before.status in ("survived", "killed later") and status == "killed"
        record[mutant.key] = Outcome(module, "killed later" if later else status, by)
        save(record)
        print(f"{record[mutant.key].status:12} {mutant.key}", flush=True)


def load() -> dict[str, Outcome]:
    """What is known of every mutant that ever ran."""
    if not RECORD.exists():
        return {}
    return {key: Outcome(**found) for key, found in json.loads(RECORD.read_text(encoding="utf-8")).items()}


def save(record: dict[str, Outcome]) -> None:
    """The record, in one go."""
    part = RECORD.with_suffix(".new")
    ordered = {key: asdict(record[key]) for key in sorted(record)}
    part.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(RECORD)


def standing(key: str, found: Outcome) -> str:
    """What a mutant counts as: a survivor that is known to be equivalent, or open."""
    if found.status != "survived":
        return found.status
    return "equivalent" if key in EQUIVALENT else "open"


def table(record: dict[str, Outcome]) -> str:
    """A line for each module, then the survivors."""
    rows = ["| module | ran | killed | killed later | equivalent | open | share |", "|---|---|---|---|---|---|---|"]
    for module in NEAREST:
        counts = Counter(standing(key, found) for key, found in record.items() if found.module == module)
        total, kept = counts.total(), sum(counts[name] for name in KEPT)
        share = f"{100 * kept / total:.0f} %" if total else "not run"
        rows.append(
            f"| `{module}` | {total} | " + " | ".join(str(counts[n]) for n in (*KEPT, "open")) + f" | {share} |"
        )
    rows += ["", "## Survivors", "", "| mutant | now |", "|---|---|"]
    for key, found in sorted(record.items()):
        now = standing(key, found)
        if now != "killed":
            why = EQUIVALENT[key] if now == "equivalent" else f"`{found.by}`" if now == "killed later" else ""
            shown = key.replace("|", "\\|").replace("`", "'")
            rows.append(f"| `{shown}` | {now}{': ' if why else ''}{why} |")
    return "\n".join(rows)


def write_page(record: dict[str, Outcome]) -> None:
    """The table between the two marks of the page."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", choices=[*NEAREST, []], help="which modules; all by default")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python", help="what runs the tests")
    parser.add_argument("--sample", type=int, default=25, help="mutants of each module, drawn anew with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run survivors that are not equivalent, and no others")
    parser.add_argument("--page", action="store_true", help="write the page from the record and run nothing")
    asked = parser.parse_args()
    record = load()
    if not asked.page:
        copied()
        for module in asked.module or NEAREST:
            every = mutants(module)
            known = {mutant.key for mutant in every}
            record = {key: found for key, found in record.items() if found.module != module or key in known}
            if asked.again:
                wanted = [m for m in every if m.key in record and standing(m.key, record[m.key]) == "open"]
            else:
                drawn = random.Random(f"{asked.seed} {module}").sample(every, min(asked.sample, len(every)))
                wanted = [m for m in drawn if m.key not in record]
            print(f"{module}: {len(wanted)} of {len(every)} mutants", flush=True)
            if wanted:
                run(asked.python.absolute(), module, wanted, record)
    write_page(record)
    shown = Counter(standing(key, found) for key, found in record.items())
    print(", ".join(f"{count} {name}" for name, count in sorted(shown.items())))
    sys.exit(0)


if __name__ == "__main__":
    main()

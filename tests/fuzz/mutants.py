"""Mutation testing: important lines of the package, each changed by itself, and whether the suite notices.

    python tests/fuzz/mutants.py [--start K] [--count N]

In a copy of the tree one line is changed, the test files that should notice are run until one test fails, and
the line is put back; first they must all pass without a change. A mutant that lives names a test that is
missing. Lines are found by their text, whichever file they are in, and test files by their names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "tests", "conftest.py", "pyproject.toml")
SECONDS = 900
"""The longest that the tests of a mutant may take; one that hangs is noticed, too."""


@dataclass(frozen=True)
class Mutant:
    """A change of one line.

    Attributes:
        breaks: the rule that does not hold with it.
        old: a part of the line, which is found once in the package.
        new: what stands there instead.
        tests: the names of the test files that should notice.
    """

    breaks: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    # ---- what is removed ----
    Mutant(
        "removed weights never come back",
        "each.numel() - kept.count(name) if name in frozen or not self.competes else 0",
        "each.numel() - kept.count(name) if name in frozen else 0",
        ("test_pruning.py",),
    ),
    Mutant(
        "what grows comes back in exchange alone",
        "return self.recipe.regrow and self.recipe.grow is None",
        "return self.recipe.regrow",
        ("test_grow.py",),
    ),
    Mutant(
        "the first step exchanges nothing",
        "if step.round == 1:",
        "if step.round == 0:",
        ("test_grow.py",),
    ),
    Mutant(
        "what has come back has no moments",
        "kept = {key: mask & before.get(key, mask).to(mask.device) for key, mask in kept.items()}",
        "kept = {key: mask for key, mask in kept.items()}",
        ("test_grow.py",),
    ),
    Mutant(
        "with regrow they compete again, and as many stay as are asked for",
        "each.numel() - kept.count(name) if name in frozen or not self.competes else 0",
        "each.numel() - kept.count(name)",
        ("test_pruning.py",),
    ),
    Mutant(
        "pruning 0.2 twice is 0.2: zeros count as removed",
        "return ~kept[name] | unless_all(self.model.get_parameter(name).detach() == 0)",
        "return ~kept[name]",
        ("test_pruning.py",),
    ),
    Mutant(
        "exactly as many as asked for are the lowest",
        "chosen[ties[: count - int(chosen.count_nonzero())]] = True",
        "chosen[ties] = True",
        ("test_masks.py",),
    ),
    Mutant(
        "of equal scores the earlier position goes first",
        "chosen[ties[: count - int(chosen.count_nonzero())]] = True",
        "chosen[ties.flip(0)[: count - int(chosen.count_nonzero())]] = True",
        ("test_masks.py",),
    ),
    Mutant(
        "the mask acts after every step of the optimizer",
        "held.zero()\n        if self._stepping",
        "pass\n        if self._stepping",
        ("test_masks.py", "test_pruning.py"),
    ),
    Mutant(
        "compression is original over remaining",
        'return self.total / kept if kept else float("inf")',
        "return kept / self.total",
        ("test_masks.py",),
    ),
    # ---- how much ----
    Mutant(
        "the floor of a layer is rounded up",
        "math.ceil(self.floor * size - 1e-9)",
        "math.floor(self.floor * size)",
        ("test_allocation_rules.py",),
    ),
    Mutant(
        "the last units go by largest remainder",
        "key=lambda name: whole[name] - amounts[name]",
        "key=lambda name: amounts[name] - whole[name]",
        ("test_allocation_rules.py",),
    ),
    Mutant(
        "a budget takes no more than it needs",
        "return after(low)",
        "return after(low + 1)",
        ("test_allocation_measured.py",),
    ),
    Mutant(
        "a sparsity is a fraction of the original count",
        "found = [1 - keep**k for k in range(1, self.steps + 1)]",
        "found = [(1 - keep) * k / self.steps for k in range(1, self.steps + 1)]",
        ("test_schedule.py",),
    ),
    # ---- optimal brain surgeon ----
    Mutant(
        "the weight of least w^2 / [H^-1]_qq goes",
        "scores.div_(diagonal)",
        "scores.mul_(diagonal)",
        ("test_obs_row_elimination.py",),
    ),
    Mutant(
        "the others of its row make up for it",
        "weights.addcmul_(vector, factor, value=-1)",
        "weights.addcmul_(vector, factor, value=1)",
        ("test_obs_row_elimination.py",),
    ),
    Mutant(
        "damping is relative to the mean of the diagonal",
        "added = damp * diagonal[live].mean()",
        "added = damp * diagonal[live].sum()",
        ("test_obs_least_squares.py",),
    ),
    Mutant(
        "the published saliency has its half",
        "weights.double().square() / (2 * inverse.diagonal().double())",
        "weights.double().square() / inverse.diagonal().double()",
        ("test_obs_least_squares.py",),
    ),
    # ---- units ----
    Mutant(
        "a Taylor series goes down from gain 1 to 0",
        "return self.second / 2 - self.first",
        "return self.second / 2 + self.first",
        ("test_units_gains.py",),
    ),
    Mutant(
        "the running statistics of a batch norm go with its channels",
        "x[1], *(value[0] for value in args[:4] if value is not None)",
        "x[1], *(value[0] for value in args[:2] if value is not None)",
        ("test_coupling_by_hand.py", "test_groups.py"),
    ),
    Mutant(
        "entries that a view lays out as one row go together",
        "rows_joined(propagator, grid.reshape(len(grid), -1))",
        "grid.reshape(len(grid), -1)[:, 0]",
        ("test_coupling_by_hand.py", "test_coupling_hard_cases.py"),
    ),
    Mutant(
        "a concatenation keeps the order of its parts",
        "return Dim(size, np.concatenate(parts), ",
        "return Dim(size, np.concatenate(parts[::-1]), ",
        ("test_coupling_by_hand.py",),
    ),
    Mutant(
        "each piece of a chunk has its own entries",
        "_picked(x[axis], slice(start, start + size))",
        "_picked(x[axis], slice(0, size))",
        ("test_coupling_by_hand.py", "test_coupling_hard_cases.py"),
    ),
    Mutant(
        "padding with another number than zero is not zero",
        "zero = not value",
        "zero = True",
        ("test_coupling_hard_cases.py",),
    ),
    Mutant(
        "a network that computes something else is refused",
        "return self.relative <= self.tolerance",
        "return True",
        ("test_proof.py",),
    ),
    # ---- training and state ----
    Mutant(
        "a part sees its own state",
        "return replace(self, state=self.states.get(key, {}), **more)",
        "return replace(self, **more)",
        ("test_scores_movement.py",),
    ),
    Mutant(
        "soft targets weigh as much at every temperature",
        "self.share * self.temperature**2 * apart",
        "self.share * self.temperature * apart",
        ("test_retrain_distill.py",),
    ),
    Mutant(
        "a session that goes on counts the optimizer's steps from where it was",
        'optimizer_steps=whole("state: optimizer_steps", values["optimizer_steps"], 0, 2**63 - 1),',
        "optimizer_steps=0,",
        ("test_attach.py",),
    ),
    Mutant(
        "another seed gives other random numbers",
        'text = "/".join(str(part) for part in (seed, *purpose))',
        'text = "/".join(str(part) for part in purpose)',
        ("test_seeds.py",),
    ),
    # ---- files of others ----
    Mutant(
        "a file that was changed is refused",
        "if said != found:",
        "if False:",
        ("test_files_odd.py", "test_saving_hostile.py", "test_saving_pretrained.py", "test_study_damage.py"),
    ),
    Mutant(
        "no module is imported that nobody has allowed",
        "if not current().covers(named):",
        "if False:",
        ("test_permission.py",),
    ),
)


def place_of(mutant: Mutant, package: Path) -> Path:
    """The file that the line of a mutant is in.

    Raises:
        ValueError: if it is not found exactly once.
    """
    found = [path for path in package.rglob("*.py") if mutant.old in path.read_text(encoding="utf-8")]
    times = sum(path.read_text(encoding="utf-8").count(mutant.old) for path in found)
    if times != 1:
        raise ValueError(f"{mutant.breaks}: {mutant.old!r} is found {times} times: say anew what is changed")
    return found[0]


def test_files(names: Sequence[str], tests: Path) -> list[Path]:
    """The files of these names, wherever they lie.

    Raises:
        ValueError: if one is not found exactly once.
    """
    paths = []
    for name in names:
        found = list(tests.rglob(name))
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} test files {name}")
        paths += found
    return paths


def lives(mutant: Mutant, tree: Path) -> bool:
    """Whether the tests pass though the line is changed."""
    path = place_of(mutant, tree / "src")
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return passes(mutant.tests, tree)
    finally:
        path.write_text(before, encoding="utf-8")


def passes(names: Sequence[str], tree: Path) -> bool:
    """Whether the test files of these names pass in a copy of the tree."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-o", "addopts=", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *map(str, test_files(names, tree / "tests"))],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout.decode()[-2000:])
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(MUTANTS))
    given = parser.parse_args()
    chosen = MUTANTS[given.start : given.start + given.count]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        names = sorted({name for mutant in chosen for name in mutant.tests})
        if not passes(names, tree):
            sys.exit(f"without a change one of these fails already: {', '.join(names)}")
        alive = 0
        for number, mutant in enumerate(chosen, given.start):
            place, began = place_of(mutant, tree / "src").relative_to(tree / "src"), time.monotonic()
            lived = lives(mutant, tree)
            alive += lived
            outcome = "LIVES " if lived else "caught"
            print(f"{number:2}  {outcome}  {time.monotonic() - began:4.0f} s  {mutant.breaks}  ({place})")
            sys.stdout.flush()
    print(f"{len(chosen)} lines changed, {len(chosen) - alive} caught; {alive} failures")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()

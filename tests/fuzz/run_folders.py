"""1,000 damages to finished and unfinished folders of a study, which is then resumed or reported.

Nothing but seconds may differ from what the undamaged folder gives: not a row, not a weight.

    python tests/fuzz/run_folders.py [--count N] [--start K]
"""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import harness
import torch

import prunekit.study.run as run_module
from prunekit.errors import PrunekitError
from prunekit.report import study_overview
from prunekit.study import Study, run_study
from prunekit.study_files import RESULTS_CSV

TRAINING = {"epochs": 1, "batch_size": 64, "lr": 0.01}
STUDY = {
    "name": "tiny",
    "dataset": {"name": "iris", "limit": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "training": TRAINING,
    "seeds": 2,
    "methods": {
        "random": {
            "recipe": {"score": "random", "schedule": {"name": "one_shot", "sparsity": 0.1}},
            "sweep": {"schedule.sparsity": [0.5, 0.8]},
        },
        "tickets": {
            "recipe": {
                "schedule": {"name": "geometric", "rate": 0.3, "steps": 2},
                "retrain": {"name": "rewind", "step": 1, "training": TRAINING},
            }
        },
    },
    "controls": {"random": "random"},
}
FILES = 38
"""So many files are put into their place while the study runs: unfinished ones are stopped in between."""


class Log(logging.Handler):
    """The warnings of prunekit, each of which must be one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    log, logger = Log(), logging.getLogger("prunekit")
    before = logger.propagate
    logger.addHandler(log)
    logger.propagate = False
    try:
        yield log.said
    finally:
        logger.removeHandler(log)
        logger.propagate = before


def make_case(place: Path) -> harness.Case:
    """The function that runs a case, after the folders have been made that all cases damage copies of."""
    torch.set_num_threads(1)
    study = Study.parse(STUDY)
    whole = place / "whole"
    resume(study, whole)
    bases = [whole, whole] + [interrupted(study, place / f"after-{k}", k) for k in range(2, FILES, 3)]
    overview = study_overview(whole)

    def case(number: int) -> str:
        dice = random.Random(number)
        folder = place / f"case-{number}"
        try:
            if dice.random() < 0.15:
                shutil.copytree(whole, folder)
                damage_a_file(
                    dice, folder, dice.choice(["study.json", "results.csv", "layers.csv", "SHA256SUMS"])
                )
                return check_report(folder, overview)
            base = dice.choice(bases)
            shutil.copytree(base, folder)
            for _ in range(dice.choice([1, 1, 1, 2, 4])):
                damage(dice, folder)
            return check_resumed(study, folder, base, whole)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return case


def resume(study: Study, folder: Path) -> None:
    # figures take a second
    with mock.patch.object(run_module, "_report", lambda layout: layout.root / RESULTS_CSV):
        run_study(study, folder, workers=1)


def interrupted(study: Study, folder: Path, files: int) -> Path:
    """The folder of a study that was stopped when it had put so many files into their place."""
    replace = os.replace
    left = files

    def counted(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    with mock.patch.object(os, "replace", counted):
        try:
            resume(study, folder)
        except KeyboardInterrupt:
            return folder
    raise AssertionError(f"the study writes less than {files} files")


# ---- what must hold ----------------------------------------------------------------------------------------


def check_resumed(study: Study, folder: Path, base: Path, whole: Path) -> str:
    with listening() as said:
        try:
            resume(study, folder)
        except (PrunekitError, OSError) as error:
            said.append(str(error))
            check_lines(said)
            return "refused"
    check_lines(said)
    for name in ("results.csv", "layers.csv"):
        assert rows(folder / name) == rows(whole / name), f"{name} differs; said: {said}"
    for path in whole.glob("*/*/seed-*/**/*.safetensors"):
        again = folder / path.relative_to(whole)
        assert again.read_bytes() == path.read_bytes(), f"{again} differs; said: {said}"
    if said:
        return "redone"
    for path in base.glob("*/*/seed-*/result.json"):  # what was kept without a word is what was there
        again = folder / path.relative_to(base)
        assert not is_kept(again, path) or again.read_bytes() == path.read_bytes(), f"{again} was kept"
    return "unaffected"


def check_lines(said: list[str]) -> None:
    for text in said:
        assert "\n" not in text and len(text) < 2000, f"no line: {text[:2000]}"  # noqa: PT018  one fact


def is_kept(path: Path, base: Path) -> bool:
    """Copies have the times of what they are copies of."""
    return path.stat().st_mtime_ns == base.stat().st_mtime_ns


def check_report(folder: Path, overview: object) -> str:
    try:
        found = study_overview(folder)
    except (PrunekitError, OSError) as error:
        check_lines([str(error)])
        return "refused in a report"
    assert found == overview, "the report finds something else"
    return "unaffected"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
        ]


# ---- damages -----------------------------------------------------------------------------------------------


def damage(dice: random.Random, folder: Path) -> None:
    if dice.random() < 0.2:
        swap(dice, folder)
        return
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    names = sorted(name for name in files if not name.endswith(".lock"))
    if names:  # else they have all been removed
        damage_a_file(dice, folder, dice.choice(names))


def swap(dice: random.Random, folder: Path) -> None:
    """Two stages, or two files of the same name, each in the other's place."""
    stages = sorted(folder.glob("*/*/seed-*"))
    one, two = dice.choice(stages), dice.choice(stages)
    if dice.random() < 0.5:
        names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
        name = dice.choice(names or ["none"])
        one, two = one / name, two / name
    if one != two and one.exists() and two.exists():
        aside = folder.parent / f"{folder.name}-aside"
        one.rename(aside)
        two.rename(one)
        aside.rename(two)


def damage_a_file(dice: random.Random, folder: Path, name: str) -> None:
    path = folder / name
    kinds: list[Callable[[random.Random, Path], None]] = [
        flip,
        truncate,
        empty,
        delete,
        append,
        blank,
        rename,
        to_folder,
    ]
    if path.suffix in (".json", ".csv"):
        kinds += [other_digit, other_digit, other_digit]
    if path.suffix == ".json":
        kinds += [other_value, other_value, double_key, deep]
    if path.suffix == ".safetensors":
        kinds += [other_values, other_values]
    dice.choice(kinds)(dice, path)


def flip(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 2, 8])):
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def truncate(dice: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) + 1)])


def empty(dice: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def delete(dice: random.Random, path: Path) -> None:
    path.unlink()


def append(dice: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + dice.choice([b"\n", b" ", b"0", b"{}", dice.randbytes(20)]))


def blank(dice: random.Random, path: Path) -> None:
    """Zeros, as after a crash of the machine."""
    content = bytearray(path.read_bytes())
    start = dice.randrange(len(content) + 1)
    length = len(content[start : start + 64])
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def rename(dice: random.Random, path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.bak"))


def to_folder(dice: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_digit(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    if places:
        content[dice.choice(places)] = ord(dice.choice("0123456789"))
    path.write_bytes(content)


def other_value(dice: random.Random, path: Path) -> None:
    """Another value or type somewhere, in a file that is JSON as prunekit writes it."""
    try:
        values = json.loads(path.read_text())
    except ValueError:  # damaged before
        return
    at = values
    while isinstance(at, dict | list) and at:
        key = dice.choice(list(at)) if isinstance(at, dict) else dice.randrange(len(at))
        if not isinstance(at[key], dict | list) or not at[key] or dice.random() < 0.1:
            other = (
                [at[key] + 1] if isinstance(at[key], int | float) else [None, 0, "words", [], {}, 1e308, True]
            )
            at[key] = dice.choice(other)
            break
        at = at[key]
    path.write_text(json.dumps(values, indent=1) + "\n")


def double_key(dice: random.Random, path: Path) -> None:
    text = path.read_text(errors="replace")
    key = dice.choice(["rows", "row", "files", "stage", "sha256", "format", "name"])
    path.write_text(text.replace("{", f'{{"{key}": {dice.choice(["0", "[]", "{}"])},', 1))


def deep(dice: random.Random, path: Path) -> None:
    path.write_text(dice.choice(["[", '{"a":']) * 100_000)


def other_values(dice: random.Random, path: Path) -> None:
    """Other weights in a sound file of the same layout."""
    content = bytearray(path.read_bytes())
    if len(content) > 40:
        start = dice.randrange(len(content) - 32, len(content) - 4)
        content[start : start + 4] = dice.randbytes(4)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    harness.main("damages to run folders", make_case, 1_000)

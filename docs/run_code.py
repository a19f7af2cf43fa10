"""Runs the code of the documentation, page by page, and compares or writes the output that the pages show.

`python docs/run_code.py` checks all pages, `python docs/run_code.py --write docs/tutorial.md` runs a page and
puts the real output into it. The tests run every page through `run_page`. What a fenced block means:

    python   runs, all blocks of a page in order, in one namespace and one temporary folder
    py       code of other libraries, which do not have to be installed: for the reader
    sh       its lines that start with prunekit, python, pytest or torchrun run; others are for the reader
    yaml     written to a file; also a python block, if its first line is a comment with a file's name
    text     after a block that ran: what it printed. A line of three dots stands for any lines

Words and whole numbers are compared as they are, other numbers so that the outcome depends on no processor:
durations not at all, errors of rounding only in that they are such, the others within a tolerance that
training stays in. It holds for whole numbers, too, in a block that begins with `text measured`, to which
a training has led.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prunekit.cli import run as run_prunekit

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/command-line.md",
    "docs/distributed.md",
    "docs/tutorial.md",
    "docs/add-a-method.md",
    "docs/add-an-operator.md",
    "docs/learn-sparsity.md",
    "docs/other-loops.md",
    "docs/large-models.md",
    "docs/pack.md",
    "docs/prune-my-own-model.md",
    "docs/second-order.md",
    "docs/studies.md",
    "docs/coming-from/llm-compressor.md",
    "docs/coming-from/nncf.md",
    "docs/coming-from/torch-nn-utils-prune.md",
    "docs/coming-from/torch-pruning.md",
    "CONTRIBUTING.md",
)

FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|yaml|yml))$")
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
FREE = re.compile(r"\d[\d.]* (?:ns|µs|ms|s)\b|± \d[\d.]*")
"""Durations and spreads say nothing of whether an output is the real one."""
TOLERANCE = 0.25
"""How far a number may lie from what is shown: processors round differently, and training adds it up."""
SHARE = 0.1
"""The same for decimals below 1: losses, and accuracies near guessing, of which a quarter is little."""
ROUNDING = 1e-6
"""Numbers with an exponent that are not larger are errors of rounding: only that they are small is real."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its first line's number in the page, how many lines it has.

    ``measured`` is whether its whole numbers were measured.
    """

    language: str
    text: str
    line: int
    length: int
    measured: bool = False

    @property
    def file(self) -> str | None:
        """The name of the file that the block is written to, if it names one."""
        found = FILE_NAME.match(self.text.split("\n", 1)[0])
        return found.group(1) if found else None


@dataclass(frozen=True)
class Shown:
    """An output that a page shows, and what was printed in truth."""

    block: Block
    printed: str


class PageError(AssertionError):
    """Code of a page failed, or printed something else than the page shows."""


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text."""
    found: list[Block] = []
    opening: tuple[list[str], int] | None = None
    inside: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if opening is None and line.startswith("```"):
            opening, inside = (line[3:].split() or [""], number + 1), []
        elif opening is not None and line.rstrip() == "```":
            words, start = opening
            found.append(Block(words[0], "\n".join(inside), start, len(inside), "measured" in words))
            opening = None
        elif opening is not None:
            inside.append(line)
    if opening is not None:
        raise PageError(f"the block that begins before line {opening[1]} has no end")
    return found


def run_page(page: Path, folder: Path) -> list[Shown]:
    """Run all code of a page in an empty folder; the outputs it shows, beside the real ones.

    Raises:
        PageError: naming the line of the page where code failed.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown: list[Shown] = []
    printed: str | None = None
    files: list[str] = []
    with like_a_user(folder):
        for block in blocks(page.read_text(encoding="utf-8")):
            place = f"{page.name}, line {block.line}"
            if block.language in ("python", "yaml") and block.file is not None:
                Path(block.file).write_text(block.text + "\n", encoding="utf-8")
                files.append(block.file)
                printed = None
            elif block.language == "python":
                printed = _run_python(block, page.name, namespace, place)
            elif block.language == "sh":
                printed = _run_shell(block.text, place)
            elif block.language == "text" and printed is not None:
                shown.append(Shown(block, printed))
                printed = None
        for name in files:
            sys.modules.pop(Path(name).stem, None)
    return shown


def check(page: str, shown: list[Shown]) -> None:
    """Refuse outputs that are not the real ones.

    Raises:
        PageError: with both texts.
    """
    for output in shown:
        if not alike(output.block.text, output.printed, measured=output.block.measured):
            raise PageError(
                f"{page}, line {output.block.line} shows\n\n{output.block.text}\n\nbut this was printed\n\n"
                f"{output.printed}\n\nIf that is right: python docs/run_code.py --write {page}"
            )


def alike(shown: str, printed: str, *, measured: bool = False) -> bool:
    """Whether two outputs say the same: equal words in equal lines, numbers near.

    Whole numbers must be equal, unless they were `measured`.
    """
    same = functools.partial(_same, measured=measured)
    parts = [_lines(part) for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)]
    lines = _lines(printed)
    if len(parts) == 1:
        return same(parts[0], lines)
    first, *middle, last = parts
    if len(lines) < sum(map(len, parts)) or not same(first, lines[: len(first)]):
        return False
    at, end = len(first), len(lines) - len(last)
    for part in middle:
        at = next((k for k in range(at, end + 1) if same(part, lines[k : k + len(part)])), end + 1) + len(
            part
        )
    return at <= end and same(last, lines[end:])


def write(page: Path, shown: list[Shown]) -> None:
    """Put the real outputs into a page, except where dots stand for lines."""
    lines = page.read_text(encoding="utf-8").split("\n")
    for output in reversed(shown):
        if "..." not in output.block.text.split("\n"):
            start = output.block.line - 1
            lines[start : start + output.block.length] = _tidy(output.printed).split("\n")
    page.write_text("\n".join(lines), encoding="utf-8")


def _lines(text: str) -> list[str]:
    return [re.sub(r"─+", "─", " ".join(line.split())) for line in _tidy(text).split("\n") if line.strip()]


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def _same(shown: list[str], printed: list[str], *, measured: bool) -> bool:
    if len(shown) != len(printed):
        return False
    for left, right in zip(shown, printed, strict=True):
        left, right = FREE.sub("T", left), FREE.sub("T", right)
        if NUMBER.sub("N", left) != NUMBER.sub("N", right):
            return False
        near = functools.partial(_near, measured=measured)
        if not all(map(near, NUMBER.findall(left), NUMBER.findall(right))):
            return False
    return True


def _near(shown: str, printed: str, *, measured: bool) -> bool:
    if not measured and not {".", "e"} & {*shown, *printed}:
        return _number(shown) == _number(printed)
    a, b = _number(shown), _number(printed)
    largest = max(abs(a), abs(b))
    if "e" in shown + printed:
        return largest <= ROUNDING or abs(a - b) <= TOLERANCE * largest
    decimals = "." in shown and "." in printed and largest < 1
    return abs(a - b) <= max(TOLERANCE * largest, SHARE if decimals else 0)


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _run_python(block: Block, page: str, namespace: dict[str, Any], place: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            # empty lines in front: a traceback names the line of the page
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, page, "exec", dont_inherit=True), namespace)
        except Exception as error:
            raise PageError(f"{place}: {type(error).__name__}: {error}\n\n{block.text}") from error
    return out.getvalue()


def _run_shell(text: str, place: str) -> str | None:
    """What the commands of a block printed; None if none of them was run."""
    printed = [_run_command(line, place) for line in text.replace("\\\n", " ").split("\n")]
    ran = [output for output in printed if output is not None]
    return "".join(ran) if ran else None


def _run_command(line: str, place: str) -> str | None:
    words = [word for part in shlex.split(line, comments=True) for word in sorted(glob.glob(part)) or [part]]
    if words[:3] == ["python", "-m", "prunekit"]:
        words = ["prunekit", *words[3:]]
    if words[:1] == ["prunekit"]:
        return _run_prunekit(words[1:], place)
    if words[:1] == ["torchrun"]:
        return _run_alone(words[-1], place)
    if words[:1] not in (["python"], ["pytest"]):
        return None
    command = [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PageError(f"{place}: {line} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def _run_prunekit(arguments: list[str], place: str) -> str:
    """In this process, which spares the time to start another; bad input may be shown, so code 2 is fine."""
    if arguments[:1] == ["compare"] and "--list" not in arguments and "--workers" not in arguments:
        arguments = [*arguments, "--workers", "1"]  # results do not depend on it
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run_prunekit(arguments)
    if code == 2:
        return out.getvalue() + error.getvalue()
    if code:
        raise PageError(f"{place}: prunekit {shlex.join(arguments)} ended with {code}\n{error.getvalue()}")
    return out.getvalue()


def _run_alone(script: str, place: str) -> str:
    """A script for torchrun as the only process of its group."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    out = io.StringIO()
    with mock.patch.dict(os.environ, alone), contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except Exception as error:
            raise PageError(f"{place}: {script}: {type(error).__name__}: {error}") from error
    return out.getvalue()


@contextlib.contextmanager
def like_a_user(folder: Path) -> Iterator[None]:
    """In the folder, with its modules importable, 80 columns, and torch as it is when a process starts."""
    before, path, threads = Path.cwd(), list(sys.path), torch.get_num_threads()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    compile_ = functools.partial(torch.compile, backend="eager")  # needs no C++ compiler, and seconds less
    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}),
        mock.patch.object(torch, "compile", compile_),
    ):
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path
            torch.set_num_threads(threads)


def main() -> int:
    """Check the pages that are named, or all; with --write, put the real outputs into them."""
    parser = argparse.ArgumentParser(description="Run the code of the documentation.")
    parser.add_argument("pages", nargs="*", help="Markdown files; all by default")
    parser.add_argument("--write", action="store_true", help="write the real outputs into the pages")
    options = parser.parse_args()
    for page in [Path(name).resolve() for name in options.pages] or [ROOT / name for name in PAGES]:
        with tempfile.TemporaryDirectory() as folder:
            shown = run_page(page, Path(folder))
        if options.write:
            write(page, shown)
        else:
            check(str(page.relative_to(ROOT)), shown)
        print(f"{page.relative_to(ROOT)}: {len(shown)} outputs {'written' if options.write else 'are real'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

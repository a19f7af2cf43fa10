"""Every code block of the documentation runs, and the outputs that are shown are the real ones."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool("run_code")


@pytest.mark.parametrize("page", tool.PAGES)
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page: str, tmp_path: Path) -> None:
    tool.check(page, tool.run_page(ROOT / page, tmp_path))


def test_every_page_with_code_is_run() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    with_code = {
        page.relative_to(ROOT).as_posix()
        for page in pages
        if any(block.language in ("python", "sh") for block in tool.blocks(page.read_text(encoding="utf-8")))
    }
    assert with_code <= set(tool.PAGES)


def write_page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_share_a_namespace_and_outputs_are_compared(tmp_path: Path) -> None:
    page = write_page(
        tmp_path, "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```\n\n```python\nprint(x + 1)\n```\n"
    )
    tool.check("page.md", tool.run_page(page, tmp_path))

    wrong = write_page(tmp_path, "```python\nprint('two')\n```\n```text\nthree\n```\n")
    with pytest.raises(tool.PageError, match=r"page\.md, line 5 shows"):
        tool.check("page.md", tool.run_page(wrong, tmp_path))


def test_an_error_in_a_block_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = write_page(tmp_path, "Words.\n\n```python\n1 / 0\n```\n")
    with pytest.raises(tool.PageError, match=r"page\.md, line 4: ZeroDivisionError"):
        tool.run_page(page, tmp_path)


def test_a_block_that_names_a_file_is_written_and_can_be_imported(tmp_path: Path) -> None:
    file = "```python\n# answer_of_page.py\nvalue = 42\n```\n"
    use = "```python\nfrom answer_of_page import value\nprint(value)\n```\n```text\n42\n```\n"
    page = write_page(tmp_path, file + use)
    tool.check("page.md", tool.run_page(page, tmp_path))


def test_commands_run_and_bad_input_can_be_shown(tmp_path: Path) -> None:
    page = write_page(
        tmp_path,
        "```sh\nmake nothing  # for the reader\nprunekit prune nowhere --method magnitude --out x\n```\n"
        "```text\nprunekit: error: there is no model 'nowhere'\n```\n",
    )
    (shown,) = tool.run_page(page, tmp_path)
    assert shown.printed.startswith("prunekit: error: ")
    with pytest.raises(tool.PageError):
        tool.check("page.md", [shown])


def test_writing_puts_the_real_output_into_the_page(tmp_path: Path) -> None:
    page = write_page(tmp_path, "```python\nprint(1)\nprint(2)\n```\n```text\n```\nEnd.\n")
    tool.write(page, tool.run_page(page, tmp_path))
    assert page.read_text() == "```python\nprint(1)\nprint(2)\n```\n```text\n1\n2\n```\nEnd.\n"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("accuracy 0.97", "accuracy 0.95"),
        ("accuracy 0.111", "accuracy 0.181"),  # by guessing
        ("accuracy 0.9", "accuracy 1.0"),
        ("difference 7.8e-16", "difference 0.0"),
        ("difference 0.0", "difference 7.8e-16"),
        ("difference 3.1e-07", "difference 8e-09"),
        ("at most 2.0e-03", "at most 2.3e-03"),
        ("12.1 µs median", "97 µs median"),
        ("a  b\n──────", "a b\n─────────"),
        ("first\n...\nlast", "first\n1\n2\nlast"),
        ("first\n...", "first\nmore"),
        ("...\nmiddle 7\n...", "first\nmiddle 7\nlast"),
    ],
)
def test_outputs_that_are_alike(shown: str, printed: str) -> None:
    assert tool.alike(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("accuracy 0.97", "accuracy 0.5"),
        ("accuracy 0.97", "error 0.97"),
        ("one", "one\ntwo"),
        ("first\n...\nlast", "first\nlost"),
        ("...\nmiddle\n...", "first\nlast"),
        ("1,000 weights", "1,500 weights"),
        ("accuracy 0.111", "accuracy 0.3"),
        ("difference 7.8e-16", "difference 0.05"),
        ("difference 7.8e-16", "difference 2e-03"),
        ("0 removed", "1 removed"),
        ("24 recipes x 3 seeds", "30 recipes x 3 seeds"),
        ("1,000 weights", "1,001 weights"),
        ("...\n24 recipes\n...", "first\n25 recipes\nlast"),
    ],
)
def test_outputs_that_differ(shown: str, printed: str) -> None:
    assert not tool.alike(shown, printed)


def test_whole_numbers_that_a_training_led_to_are_near_if_the_page_says_so(tmp_path: Path) -> None:
    text = "```python\nprint('1,050 parameters')\n```\n```text{}\n1,000 parameters\n```\n"
    for words, near in ((" measured", True), ("", False)):
        shown = tool.run_page(write_page(tmp_path, text.format(words)), tmp_path)
        with contextlib.nullcontext() if near else pytest.raises(tool.PageError):
            tool.check("page.md", shown)
    assert not tool.alike("1,000 parameters", "1,500 parameters", measured=True)
    assert tool.alike("1,000 weights", "1000 weights")

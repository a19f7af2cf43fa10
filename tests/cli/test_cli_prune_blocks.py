"""`prunekit prune-blocks`: a text and a model to the files of the pruned one, also where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import prunekit.blockwise.block_run as block_run
import prunekit.blockwise.pruning as pruning
from prunekit.blockwise import drawn_sequences, memory_needed, prune_blocks, text_tokens
from prunekit.cli import run
from prunekit.errors import InputError
from prunekit.methods import llm_pruner, wanda

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama with a tokenizer of whole words, and beside it a text."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    source = tmp_path / "dense"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        vocab_size=len(WORDS),
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    (tmp_path / "text.txt").write_text(" ".join(WORDS[place % 37] for place in range(200)))
    return source


def command(folder: Path, out: Path, *more: str) -> list[str]:
    text = folder.parent / "text.txt"
    fixed = ["prune-blocks", str(folder), "--text", str(text), "--out", str(out), "--method", "wanda"]
    return [*fixed, "--sequences", "4", "--length", "10", "--seed", "3", *more]


def test_the_files_are_those_of_the_function(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    opened, opening = [], pruning.causal_model
    monkeypatch.setattr(pruning, "causal_model", lambda path: opened.append(path) or opening(path))
    assert run(command(folder, tmp_path / "out", "--json", "--set", "sparsity=0.25")) == 0
    assert opened == [folder]
    said = json.loads(capsys.readouterr().out)
    assert said["sparsity"] == [0.25] * 3
    tokens = text_tokens(tmp_path / "text.txt", folder)
    assert tokens.tolist() == [place % 37 for place in range(200)]
    sequences = drawn_sequences(tokens, 4, 10, 3)
    assert all((row.diff() % 37 == 1).all() for row in sequences)
    assert said["memory"] == memory_needed(folder, wanda(0.25), sequences).total
    prune_blocks(folder, wanda(0.25), sequences, tmp_path / "expected", seed=3)
    for path in (tmp_path / "expected").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_scores_by_gradients_go_back_from_the_last_block(folder: Path, tmp_path: Path, capsys: Any) -> None:
    given = [part if part != "wanda" else "llm_pruner" for part in command(folder, tmp_path / "out")]
    assert run([*given, "--set", "sparsity=0.5"]) == 0
    assert "51 of 102 units of 3 blocks are removed" in capsys.readouterr().out.replace("\n", " ")
    sequences = drawn_sequences(text_tokens(tmp_path / "text.txt", folder), 4, 10, 3)
    prune_blocks(folder, llm_pruner(0.5), sequences, tmp_path / "expected", seed=3)
    for path in (tmp_path / "expected").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert run([*given[:4], "--out", str(tmp_path / "other"), *given[6:], "--inputs", "pruned"]) == 2
    assert "gradients come back through dense blocks" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


def test_stopped_and_gone_on_with(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    assert run(command(folder, tmp_path / "whole")) == 0
    assert "of 3 blocks are removed" in capsys.readouterr().out
    prune, calls = block_run.prune, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return prune(*args, **kwargs)

    monkeypatch.setattr(block_run, "prune", stopped)
    assert run(command(folder, tmp_path / "parts")) == 130
    assert (
        "stopped behind 2 of 3 passes through a block; the same command goes on from there"
        in capsys.readouterr().err
    )
    assert run(command(folder, tmp_path / "parts", "--activations", "disk")) == 0
    assert len(calls) == 4  # the third block alone was left
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name


def test_what_is_wrong_is_said_in_a_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(command(folder, tmp_path / "out", "--length", "300")) == 2
    assert "the text has 200 tokens, a sequence 300" in capsys.readouterr().err
    assert run(command(folder, tmp_path / "out", "--memory", "10")) == 2
    assert "are allowed (memory)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="there is no tokenizer"):
        text_tokens(tmp_path / "text.txt", tmp_path)
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        text_tokens(tmp_path / "odd.txt", folder)

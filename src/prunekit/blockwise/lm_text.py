"""Token numbers of a text for a language model of a folder, and the sequences that calibrate it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunekit.errors import InputError, escaped


def text_tokens(text: Path, folder: Path) -> Tensor:
    """(count,) int64: the numbers of a file's text by the tokenizer of a folder of transformers.

    Nothing that the folder names is run.

    Raises:
        InputError: if the file cannot be read as UTF-8, or there is no tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError("tokenizers are read by the package transformers, which is not installed") from None
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} cannot be read as text: {escaped(str(error))[:200]}") from None
    try:
        settings = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the files of a tokenizer make its packages say
        raise InputError(f"{folder}: there is no tokenizer: {escaped(str(error))[:200]}") from None
    return torch.tensor(tokenizer(content)["input_ids"], dtype=torch.int64)


def drawn_sequences(tokens: Tensor, sequences: int, length: int, seed: int) -> Tensor:
    """(sequences, length): windows of a text that begin at random places, as published for calibration.

    Raises:
        InputError: if the text (count,) is shorter than one.
    """
    if len(tokens) < length:
        raise InputError(f"the text has {len(tokens):,} tokens, a sequence {length:,}: give a longer text")
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(tokens) - length + 1, (sequences,), generator=random)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])

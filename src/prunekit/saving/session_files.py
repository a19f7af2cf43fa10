"""A pruning under way as one file, for checkpoints: tensors and JSON, checked by a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit.digests import read_tensors, write_tensors
from prunekit.errors import DataError, InputError, PrunekitError, naming, shown
from prunekit.files import file_to_write, parse_json
from prunekit.pruning import Session

_SESSION = "session"


def save_session(session: Session, path: str | Path) -> None:
    """Write what a session needs to go on; the network and the optimizer are for you to save beside it.

    Raises:
        InputError: if it is no session, or the path is a folder.
        OSError: if it cannot be written; what was there before is left then.
    """
    _check_session(session)
    tensors, text = session_to_tensors(session.state_dict())
    write_tensors(file_to_write(path), tensors, {_SESSION: text})


def load_session(session: Session, path: str | Path) -> None:
    """Go on from where a session of the same recipe, seed and model was when it was saved.

    Raises:
        DataError: naming the file, if it is missing or damaged, or was written by something else.
        InputError: if it is no session that is to go on, the path is a folder, or the file belongs to
            another recipe, seed or model. In all cases nothing is changed.
    """
    _check_session(session)
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder: name the file of the session")
    tensors, metadata = read_tensors(Path(path))
    if _SESSION not in metadata:
        raise DataError(f"{path} holds no session: save_session writes them")
    state = session_from_tensors(metadata[_SESSION], tensors, Path(path))
    with naming(str(path)):
        session.load_state_dict(state)


def _check_session(session: Any) -> None:
    if not isinstance(session, Session):
        raise InputError(
            f"a session is needed, not {shown(session)}: recipe.attach gives one, a callback has one once "
            "the training has begun"
        )


def session_to_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a session's `state_dict()` by names, and the rest as JSON that refers to them."""
    tensors: dict[str, Tensor] = {}

    def beside(value: Tensor) -> dict[str, str]:
        place = f"{_SESSION}/{len(tensors)}"
        tensors[place] = value.clone()  # a file holds no two views of the same memory
        return {"tensor": place}

    pairs = {key: _keys_told(value) for key, value in state.items()}
    return tensors, json.dumps(pairs, default=beside)


def session_from_tensors(text: str, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The inverse.

    Raises:
        DataError: naming the file that both are from, if they do not go together.
    """
    try:
        state = _with_tensors(parse_json(text, path), tensors)
        if not isinstance(state, dict):
            raise TypeError("it is no mapping")
    except (PrunekitError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no state of a session: {error}") from None
    return state


def _keys_told(value: Any) -> Any:
    """Mappings by numbers, as checkpoints by their step, as lists of pairs: keys of JSON are texts."""
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return {"pairs": [[key, _keys_told(each)] for key, each in value.items()]}
        return {key: _keys_told(each) for key, each in value.items()}
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(each, tensors) for each in value]
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"tensor"} and isinstance(value["tensor"], str):  # else a parameter of that name
        return tensors[value["tensor"]]
    if set(value) == {"pairs"} and isinstance(value["pairs"], list):
        return {key: _with_tensors(each, tensors) for key, each in value["pairs"]}
    return {key: _with_tensors(each, tensors) for key, each in value.items()}

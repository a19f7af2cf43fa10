"""Forged graphs of saved networks, over all operators that one may hold: `python tests/fuzz/graphs.py`.

`calls.json` has valid calls of most operators: arguments, and shapes and dtypes for tensors. A case takes one
or draws arguments by the operator's schema, replaces some with extremes, and has other calls read the result.
"""

from __future__ import annotations

import importlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from harness import Case, main, refused
from mutations import EXTREMES
from torch import Tensor

from prunekit import DataError, load_pretrained
from prunekit.digests import digest_of_json, write_json_with_digest, write_tensors
from prunekit.saving.graph_values import OVERLOADS, named_operator

CALLS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "calls.json").read_text())
NAMES = sorted({*OVERLOADS, *CALLS})
LIMIT = 16 << 20
"""What the tensors of a graph may take here, in bytes."""

FORBIDDEN = (
    *("_reshape_alias.default", "as_strided.default", "set_.source_Storage", "resize_.default", "view.dtype"),
    *("relu_.default", "add.out", "empty.memory_format", "randn.default", "nonzero.default", "os.system"),
    *("native_group_norm.default", "wrap_with_autocast", "wrap_with_set_grad_enabled", "cond", "while_loop"),
    *("native_batch_norm.default", "embedding_bag.default", "_print.default", "from_file.default"),
    *(
        "record_stream.default",
        "unique_dim.default",
        "__class__",
        "polygamma.default",
        "masked_select.default",
    ),
)
NUMBERS: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        5,
        16,
        -2,
        100,
        1000,
        65536,
        2**20,
        2**31 - 1,
        2**31,
        -(2**31),
        2**40,
        2**62,
        2**63 - 1,
    ),
    *(
        -(2**63),
        0.0,
        0.5,
        -0.5,
        1e-45,
        1e-320,
        1e308,
        -1e308,
        {"float": "nan"},
        {"float": "inf"},
        {"float": "-inf"},
    ),
)
DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "uint8",
    "bool",
    "complex64",
    "quint8",
    "bits8",
)
SHAPES = (
    (),
    (0,),
    (1,),
    (3,),
    (2, 3),
    (3, 3),
    (2, 3, 4),
    (2, 3, 4, 4),
    (1, 1, 1, 1, 1),
    (2, 0, 3),
    (2, 3, 2, 2, 2),
)
CONSTANT = "#constant"


class Draft:
    """A graph under way: its nodes as a file holds them, and its constants."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.nodes: list[Any] = [{"input": True}]
        self.inputs: list[list[str]] = [["user", ""]]
        self.constants: dict[str, Tensor] = {}
        self.calls: list[Any] = []

    def tensor(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A node that stands for a constant; values may be NaN, infinite, negative or far past any size."""
        if self.draw.random() < 0.1:
            return {"node": 0}
        made = _values(self.draw, shape, dtype)
        name = f"c{len(self.constants)}"
        self.constants[name] = made
        self.inputs.append(["constant", name])
        self.nodes.append({"input": True})
        return {"node": len(self.nodes) - 1}

    def filled(self, value: Any) -> Any:
        """Arguments of a template, with tensors made."""
        if isinstance(value, dict) and "tensor" in value:
            shape, dtype = tuple(value["tensor"]), value["of"]
            if self.draw.random() < 0.08:
                shape = self.draw.choice(SHAPES)
            if self.draw.random() < 0.05:
                dtype = self.draw.choice(DTYPES[:9])
            return self.tensor(shape, dtype)
        if isinstance(value, dict):
            return value
        return [self.filled(each) for each in value] if isinstance(value, list) else value

    def drawn(self, kind: str) -> Any:
        """An argument for a type of a schema."""
        if kind.startswith("Optional[") and self.draw.random() < 0.4:
            return None
        kind = kind.removeprefix("Optional[").rstrip("]") if kind.startswith("Optional[") else kind
        if kind.startswith("List["):
            return [self.drawn(kind[5:-1]) for _ in range(self.draw.choice((0, 1, 1, 2, 2, 3, 4)))]
        if "Tensor" in kind:
            return self.tensor(self.draw.choice(SHAPES), self.draw.choice(DTYPES[:9]))
        if "bool" in kind.lower():
            return self.draw.random() < 0.5
        if "str" in kind.lower():
            return self.draw.choice(
                ("ij,jk->ik", "sum", "mean", "none", "reflect", "constant", "same", "x" * 99, "")
            )
        if kind == "ScalarType":
            return {"dtype": self.draw.choice(DTYPES)}
        if kind in ("int", "SymInt", "number", "Scalar", "float"):
            return (
                self.draw.choice((0, 1, -1, 2, 3)) if self.draw.random() < 0.6 else self.draw.choice(NUMBERS)
            )
        return {"dtype": self.draw.choice(DTYPES)} if self.draw.random() < 0.5 else None

    def worse(self, value: Any) -> Any:
        """The argument, or an extreme in its place or inside of it."""
        if isinstance(value, list) and value and self.draw.random() < 0.7:
            place = self.draw.randrange(len(value))
            return [*value[:place], self.worse(value[place]), *value[place + 1 :]]
        if isinstance(value, int | float) or value is None or self.draw.random() < 0.5:
            return self.draw.choice(
                (*NUMBERS, *NUMBERS, [self.draw.choice(NUMBERS)] * 2, [], None, True, [1] * 5)
            )
        return self.draw.choice(
            (*EXTREMES, {"dtype": self.draw.choice(DTYPES)}, {"memory_format": "channels_last"})
        )

    def call(self, name: str, reads: int | None) -> int:
        """One more call, whose first tensor is that of a node if one is given; the number of its node."""
        templates = CALLS.get(name)
        if templates and self.draw.random() < 0.85:
            args, kwargs = self.draw.choice(templates)
        else:
            schema = getattr(named_operator(name), "_schema", None) if name in OVERLOADS else None
            wanted = schema.arguments if schema else []
            args = [self.drawn(str(each.real_type)) for each in wanted if not each.kwarg_only]
            kwargs = {
                each.name: self.drawn(str(each.real_type))
                for each in wanted
                if each.kwarg_only and (not each.has_default_value() or self.draw.random() < 0.3)
            }
        args = [self.filled(each) for each in args]
        kwargs = {key: self.filled(value) for key, value in kwargs.items()}
        if reads is not None and args and isinstance(args[0], dict):
            args[0] = {"node": reads}
        for _ in range(self.draw.choice((0, 0, 0, 1, 1, 2))):
            if args and self.draw.random() < 0.85:
                place = self.draw.randrange(len(args))
                args[place] = self.worse(args[place])
            elif kwargs:
                key = self.draw.choice(list(kwargs))
                kwargs[key] = self.worse(kwargs[key])
        if self.draw.random() < 0.02:
            kwargs[self.draw.choice(("out", "self", "layout", "device", "pin_memory", "x=1, y"))] = (
                self.worse(None)
            )
        self.calls.append({"call": name, "args": args, "kwargs": kwargs})
        return len(self.calls) - 1


def make_case(folder: Path) -> Case:
    """The cases: each operator has its turn."""
    torch.set_num_threads(1)
    for module in ("sympy", "torch.fx.experimental.symbolic_shapes", "torch._refs", "torch._dynamo"):
        importlib.import_module(module)  # which torch loads when some operator is called first

    def case(number: int) -> str:
        draw = random.Random(number)
        draft = Draft(draw)
        first = NAMES[number % len(NAMES)] if draw.random() < 0.97 else draw.choice(FORBIDDEN)
        draft.call(first, None)
        for _ in range(draw.choice((0, 0, 1, 2))):
            draft.call(draw.choice(NAMES), -1)
        _write(folder, draft, lists=draw.random() < 0.9)
        try:
            model = load_pretrained(folder, allow_nan=True, max_bytes=LIMIT)
        except DataError as error:
            return refused(error)
        assert first not in FORBIDDEN, f"{first} was accepted"
        before = {name: value.clone() for name, value in draft.constants.items()}
        try:
            with torch.no_grad():
                model.eval()(torch.ones(2, 3, 4, 4))
        except Exception:  # what PyTorch says of values, such as an index that is too large
            return "refused by PyTorch when it is run"
        for name, value in before.items():
            same = torch.equal(value.nan_to_num(), model.graphs[0].constants[name].nan_to_num())
            assert same, f"{first} wrote into a constant"
        return "run"

    return case


def _write(folder: Path, draft: Draft, lists: bool) -> None:
    """The folder, with digests that fit."""
    nodes = list(draft.nodes)
    for call in draft.calls:  # every call reads the one before it, where it reads a call
        text = json.dumps(call).replace('{"node": -1}', json.dumps({"node": len(nodes) - 1}))
        nodes.append(json.loads(text))
        if lists and _returns_several(call["call"]):
            nodes.append({"call": "getitem", "args": [{"node": len(nodes) - 1}, 0], "kwargs": {}})
    graph = {
        "inputs": draft.inputs,
        "outputs": [["user", ""]],
        "shapes": [[2, 3, 4, 4]],
        "dtypes": ["float32"],
        "takes": {"tuple": [{"tuple": ["*"]}, {"dict": {}}]},
        "gives": "*",
        "nodes": nodes,
        "returns": {"tuple": [{"node": len(nodes) - 1}]},
    }
    tensors = {f"0.{name}{CONSTANT}": value for name, value in draft.constants.items()}
    files = {
        "model.safetensors": write_tensors(folder / "model.safetensors", {**tensors, "w": torch.zeros(1)})
    }
    values = {"parameters": {"w": True}, "buffers": {}, "graphs": [graph]}
    text = json.dumps({**values, "sha256": digest_of_json(values)})
    (folder / "graph.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    files["graph.json"] = digest_of_json(values)
    empty: dict[str, Any] = {key: {} for key in ("pruned", "tied", "sizes")}
    more = dict.fromkeys(("architecture", "shrunk", "recipe"))
    about = {"format": 2, "prunekit": "0", **empty, **more, "history": [], "files": files}
    write_json_with_digest(folder / "prunekit.json", about)


def _returns_several(name: str) -> bool:
    if name not in OVERLOADS:
        return name == "batch_norm_training"
    returns = named_operator(name)._schema.returns  # type: ignore[attr-defined]
    return len(returns) > 1 or str(returns[0].type).startswith("List")


def _values(draw: random.Random, shape: tuple[int, ...], dtype: str) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    kind = getattr(torch, dtype)
    if dtype == "bool":
        return torch.tensor([draw.random() < 0.5 for _ in range(count)], dtype=kind).view(shape)
    if kind.is_floating_point or kind.is_complex:
        scale = draw.choice((1.0, 1.0, 1.0, 1e30, 0.0))
        made = torch.tensor([scale * draw.gauss(0, 1) for _ in range(count)], dtype=torch.float64)
        if count and draw.random() < 0.15:
            made[draw.randrange(count)] = draw.choice((float("nan"), float("inf"), -float("inf"), 1e308))
        return made.to(kind).view(shape)
    top = draw.choice((1, 2, 3, 3, 10, 10**6, 2**62 if dtype == "int64" else 200))
    low = draw.choice((0, 0, 0, -1, -top))
    numbers = [draw.randint(low, top) for _ in range(count)]
    return torch.tensor(numbers, dtype=torch.int64).to(kind).view(shape)


def seen(count: int, folder: Path) -> Counter[str]:
    """How often each operator was run to its end, to see that the grammar reaches all of them."""
    case, found = make_case(folder), Counter[str]()
    for number in range(count):
        found[NAMES[number % len(NAMES)]] += case(number) == "run"
    return found


if __name__ == "__main__":
    main("forged graphs", make_case, 20_000)

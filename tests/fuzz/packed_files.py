"""Packed files that were damaged, or forged with checksums that fit: `python tests/fuzz/packed_files.py`."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Case, main, refused
from mutations import bomb, changed_bytes, changed_json
from saved_folders import Written, _run
from torch import nn

from prunekit import Architecture, Masks, PrunekitError
from prunekit.graph import prune_groups
from prunekit.models import ModelSettings
from prunekit.packing import PackedFile, pack
from prunekit.packing.costs import costs_of
from prunekit.packing.head import DICTIONARY
from prunekit.saving import SavedNetwork
from small_nets import Tied, convnet, mlp

Make = Callable[[], nn.Module | None]
LIMIT = 1 << 20
"""What the tensors may take here, in bytes."""
ADDRESSES = 2 << 30
"""How many addresses a process may use beside those that it has at first."""
START, CHECKED = 3, 8  # bytes of the magic and the version, and of the checksum


def bases(folder: Path) -> list[tuple[Path, Make]]:
    """Files of every kind, and what makes the model to load each into."""
    torch.manual_seed(0)
    found: list[tuple[Path, Make]] = []

    def add(name: str, model: nn.Module, make: Make, **more: object) -> None:
        found.append((pack(model, folder / name, **more), make))  # type: ignore[arg-type]

    folder.mkdir()
    half = Masks({"0.weight": torch.arange(96).view(16, 6) % 2 == 0})
    known = Architecture(ModelSettings.parse({"name": "mlp", "hidden": [12, 9]}), (1, 4, 4), 3)
    few = known.build()
    with torch.no_grad():
        for parameter in few.parameters():
            parameter.copy_((parameter * 8).round() / 8 if parameter.dim() > 1 else parameter.half().float())
    add("own", mlp(6, 16, 3), lambda: mlp(6, 16, 3), masks=half)
    add("known", few, lambda: None, architecture=known)
    add("published", few, lambda: None, architecture=known, coding="published")
    zeroed = copy.deepcopy(few)
    zeroed.fc2.weight.data[:4] = 0  # type: ignore[union-attr, operator]
    kept = Masks({"fc2.weight": torch.arange(108).view(9, 12) % 3 != 0})
    add("masked", zeroed, lambda: None, architecture=known, masks=kept)
    add("tied", Tied(), Tied)
    add("halves", convnet().half(), lambda: convnet().half())
    resnet = Architecture(ModelSettings.parse({"name": "resnet", "depth": 8, "width": 4}), (3, 8, 8), 3)
    shrunk = prune_groups(resnet.build(), torch.randn(2, 3, 8, 8), 0.5)
    add("shrunk", shrunk, lambda: None, architecture=resnet)  # type: ignore[arg-type]
    graph = prune_groups(Written().eval(), torch.randn(2, 3, 6, 6), 0.5)
    add("graph", graph, lambda: None)  # type: ignore[arg-type]
    return found


def make_case(folder: Path) -> Case:
    """The cases: the number says which file is changed and how."""
    torch.set_num_threads(1)
    found = bases(folder / "bases")
    contents = [base.read_bytes() for base, _ in found]
    models = [make() for _, make in found]
    states = [SavedNetwork(base).load(make()).state_dict() for base, make in found]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def case(number: int) -> str:
        # in the process of the case: what is limited in that of the tests is so for all tests after this one
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
        draw = random.Random(number)
        base = draw.randrange(len(found))
        kind = draw.choice(("damaged", "resealed", "forged"))
        data = contents[base]
        if kind == "damaged":
            data = changed_bytes(draw, data)
        elif kind == "resealed":
            data = data[:START] + changed_bytes(draw, data[START:-CHECKED])
        else:
            data = _forged(draw, data)
        if kind != "damaged":
            data += hashlib.sha256(data).digest()[:CHECKED]
        path = folder / "case"
        path.write_bytes(data)
        try:
            loaded = SavedNetwork(PackedFile(path, max_bytes=LIMIT)).load(
                copy.deepcopy(models[base]), max_bytes=64 * LIMIT
            )
            costs_of(path, max_bytes=LIMIT)
        except PrunekitError as error:
            return f"{kind} and {refused(error)}"
        state = loaded.state_dict()
        if data == contents[base]:
            return f"{kind} and unchanged"
        assert kind != "damaged", "damage was not noticed"
        assert not any(value.isnan().any() for value in state.values()), "NaN was loaded"
        _run(loaded)
        same = state.keys() == states[base].keys() and all(
            torch.equal(state[name], value) for name, value in states[base].items()
        )
        return f"{kind} and loaded, {'equal' if same else 'other'}"

    return case


def _forged(draw: random.Random, data: bytes) -> bytes:
    """A file whose head says something else: of the network, or of its tensors."""
    unpress = zlib.decompressobj(-15, zdict=DICTIONARY)
    text, _, records = unpress.decompress(data[START:-CHECKED]).partition(b"\0")
    if draw.random() < 0.01:
        text = bomb(draw)
    elif draw.random() < 0.5:
        text = json.dumps(changed_json(draw, json.loads(text))).encode("utf-8", "surrogatepass")
    else:
        records = changed_bytes(draw, records)
    rest = unpress.unused_data
    if draw.random() < 0.3:
        rest = changed_bytes(draw, rest)
    press = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    return data[:START] + press.compress(text + b"\0" + records) + press.flush() + rest


if __name__ == "__main__":
    main("mutated packed files", make_case, 100_000)

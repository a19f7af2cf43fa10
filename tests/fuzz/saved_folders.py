"""Saved folders that were damaged, or forged with digests that fit: `python tests/fuzz/saved_folders.py`."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from harness import Case, main, refused
from mutations import EXTREMES, bomb, changed_bytes, changed_json
from safetensors.torch import load_file
from torch import Tensor, nn

from prunekit import Architecture, Masks, PrunekitError, load_masks, load_pretrained, save_pretrained
from prunekit.digests import digest_of_json, write_tensors
from prunekit.graph import GraphModel, prune_groups
from prunekit.models import ModelSettings
from prunekit.saving import SavedNetwork, check_saved
from small_nets import Tied, convnet, mlp
from zoo import made

Make = Callable[[], nn.Module | None]
LIMIT = 64 << 20
"""What the tensors of a graph may take here, in bytes."""


class Written(nn.Module):
    """Sizes that are written in its code, so that it becomes a graph when it shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        return self.second(x.view(-1, 8, 36).mean(2))


def bases(folder: Path) -> list[tuple[Path, Make]]:
    """Folders of every kind, and what makes the model to load each into."""
    torch.manual_seed(0)
    found: list[tuple[Path, Make]] = []

    def save(name: str, model: nn.Module, make: Make, **more: object) -> None:
        found.append((save_pretrained(model, folder / name, **more), make))  # type: ignore[arg-type]

    half = Masks({"0.weight": torch.arange(96).view(16, 6) % 2 == 0})
    settings = ModelSettings.parse({"name": "mlp", "hidden": [12, 9]})
    known = Architecture(settings, (6,), 3)
    save("own", mlp(6, 16, 3), lambda: mlp(6, 16, 3), masks=half)
    save("known", known.build(), lambda: None, architecture=known)
    save("tied", Tied(), Tied)
    save("convolutions", convnet(), convnet)
    resnet, images = made("resnet-basic")
    save("groups", prune_groups(resnet, images, 0.5), lambda: made("resnet-basic")[0])  # type: ignore[arg-type]
    graph = prune_groups(Written().eval(), torch.randn(2, 3, 6, 6), 0.5)
    assert graph.form == "graph", graph.reason
    save("graph", graph, lambda: None)  # type: ignore[arg-type]
    return found


def make_case(folder: Path) -> Case:
    """The cases: the number says which folder is changed, in which file and how."""
    torch.set_num_threads(1)
    found = bases(folder / "bases")
    contents = [{path.name: path.read_bytes() for path in base.iterdir()} for base, _ in found]
    models = [make() for _, make in found]
    originals = [load_pretrained(base, make()).state_dict() for base, make in found]

    def case(number: int) -> str:
        draw = random.Random(number)
        base = draw.randrange(len(found))
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        files = dict(contents[base])
        forged = draw.random() < 0.6
        name = draw.choice(list(files))
        files[name] = _forged(draw, name, files[name]) if forged else changed_bytes(draw, files[name])
        for each, content in files.items():
            (place / each).write_bytes(content)
        if forged:
            _reseal(place, keep=name == "prunekit.json" and draw.random() < 0.1)
        try:
            loaded = _load(place, copy.deepcopy(models[base]))  # a load may make it smaller
        except PrunekitError as error:
            return f"{'forged' if forged else 'damaged'} and {refused(error)}"
        if not forged:
            state = loaded.state_dict()
            assert set(state) == set(originals[base])
            assert all(torch.equal(state[key], value) for key, value in originals[base].items()), (
                "other values"
            )
            return "damaged and equal"
        assert not any(value.isnan().any() for value in loaded.state_dict().values()), "NaN was loaded"
        _run(loaded)
        return "forged and loaded"

    return case


def _load(place: Path, model: nn.Module | None) -> nn.Module:
    try:
        return load_pretrained(place, model, max_bytes=LIMIT)
    finally:
        for other in (check_saved, load_masks, lambda folder: SavedNetwork(folder).architecture()):
            with suppress(PrunekitError):
                other(place)


def _run(model: nn.Module) -> None:
    """A loaded graph is run; that it fails then is no fault, that the process ends would be."""
    if isinstance(model, GraphModel):
        shape = model.input_shapes[0]
        with torch.no_grad(), suppress(Exception):
            model.eval()(torch.ones(shape or (2, 3, 6, 6)))


def _forged(draw: random.Random, name: str, content: bytes) -> bytes:
    if draw.random() < 0.02:
        return bomb(draw)
    if name.endswith(".json"):
        values = json.loads(content)
        values.pop("sha256", None)
        return json.dumps(changed_json(draw, values)).encode("utf-8", "surrogatepass")
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    kind = draw.randrange(3)
    if kind == 0:
        header = changed_json(draw, header)
    elif kind == 1:  # NaN, infinities and other numbers
        for _ in range(draw.choice((1, 4, 100))):
            at = draw.randrange(0, max(len(data) - 4, 1), 1)
            data[at : at + 4] = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", draw.randbytes(4)))
    else:
        entry = header.get(draw.choice(list(header)))
        if isinstance(entry, dict) and "shape" in entry:
            entry["shape"] = draw.choice(
                ([2**40, 2**40], [0, 2**62], [*entry["shape"], 1], list(EXTREMES[7:9]))
            )
            entry["dtype"] = draw.choice((entry["dtype"], "F64", "BOOL", "F8_E4M3", "BF16", "X"))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _reseal(place: Path, keep: bool) -> None:
    """Let all digests fit, as whoever forges a folder would."""
    path = place / "prunekit.json"
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    if not keep and isinstance(values.get("files"), dict):
        with suppress(Exception):
            tensors = load_file(place / "model.safetensors")
            values["files"]["model.safetensors"] = write_tensors(place / "model.safetensors", tensors)
        with suppress(Exception):
            graph = json.loads((place / "graph.json").read_bytes())
            graph["sha256"] = digest_of_json({key: graph[key] for key in graph if key != "sha256"})
            values["files"]["graph.json"] = graph["sha256"]
            (place / "graph.json").write_bytes(json.dumps(graph).encode("utf-8", "surrogatepass"))
    try:
        values["sha256"] = digest_of_json({key: values[key] for key in values if key != "sha256"})
    except (ValueError, TypeError):
        return
    path.write_bytes(json.dumps(values).encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main("mutated saved folders", make_case, 100_000)

"""The coder beside gaps and Huffman codes as published, general compressors and NNCodec; same integers."""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import nn

from codec_networks import NETWORKS, weights
from prunekit import pack
from prunekit.compress import (
    decode_gaps,
    decode_levels,
    encode_gaps,
    encode_levels,
    optimal_kmeans,
    order_units,
    regroup,
)
from side_by_side import finish, resident

LEVELS = 16
CHAINS = ("lenet_300_100", "lenet5")
LARGE = (3_200, 3_125)
DENSITY = 0.08
PLANES = {(300, 784): (28, 28), (500, 800): (50, 16)}
"""The pixels that LeNet-300-100's first layer sees; the channels that LeNet-5's first linear layer sees."""

NNCODEC = """
import json, sys
import numpy as np
from nncodec import nnc
found = {}
layers = {name: value.astype(np.int32) for name, value in np.load(sys.argv[1]).items()}
for what, given in (("bytes", layers), ("bytes_of_zeros", {k: np.zeros_like(v) for k, v in layers.items()})):
    found[what] = 1 << 60
    for skipping in (True, False):
        data = nnc.compress(dict(given), bitstream_path=sys.argv[2], return_bitstream=True, use_dq=False,
                            row_skipping=skipping, param_opt=True, verbose=False)
        back = nnc.decompress(data)
        assert all(np.array_equal(back[name], value) for name, value in given.items())
        found[what] = min(found[what], len(data))
print(json.dumps(found))
"""
"""The better of NNCodec's two ways, verified; and what it takes for zeros of the same shapes: its headers."""

Layers = Sequence[np.ndarray]
Way = tuple[Callable[[Layers], Any], Callable[[Any, Layers], list[np.ndarray]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--nncodec", type=Path, help="a python that can import nncodec")
    parser.add_argument(
        "--networks",
        type=Path,
        default=Path("runs/codec-networks"),
        help="where the trained networks are kept",
    )
    options = parser.parse_args()
    options.rounds = 1
    sizes = {
        f"{name}, {kept} %": network(name, layers, options.nncodec)
        for name in NETWORKS
        for kept, layers in weights(options.networks, name).items()
    }
    large = {}
    for name in ways():
        with multiprocessing.get_context("spawn").Pool(
            1
        ) as pool:  # a process each, for the peak of its memory
            large[name] = pool.apply(cost, (name,))
    finish(options, {"levels": LEVELS, "bytes": sizes, "10 million weights": large})


def network(name: str, layers: Mapping[str, np.ndarray], nncodec: Path | None) -> dict[str, Any]:
    """Bytes of a network's levels by each way, and of the whole file with names and shapes."""
    named = {key: optimal_kmeans(layer, LEVELS).codes for key, layer in layers.items()}
    codes = list(named.values())
    found: dict[str, Any] = {
        "layers": len(codes),
        "weights": sum(code.size for code in codes),
        "kept": sum(int(np.count_nonzero(code)) for code in codes),
        "order-0 entropy": round(sum(map(entropy, codes))),
    }
    for way, (encode, decode) in ways().items():
        data = encode(codes)
        back = decode(data, codes)
        assert all(map(np.array_equal, back, codes))
        found[way] = size(data)
    if name in CHAINS:
        found["prunekit, units in order"] = size(ways()["prunekit"][0](ordered(codes)))
    found["prunekit, whole file"] = by_pack(named)
    if nncodec is not None:
        found["NNCodec"], found["NNCodec, zeros of these shapes"] = by_nncodec(codes, nncodec)
    return found


def ordered(codes: Layers) -> Layers:
    """The layers of a chain with their hidden units in the order that takes fewer bytes."""
    found = list(codes)
    for number in range(len(found) - 1):
        order = order_units(found[number], found[number + 1])
        found[number], found[number + 1] = found[number][order], regroup(found[number + 1], order)
    return found


def ways() -> dict[str, Way]:
    def planes(layers: Layers) -> list[tuple[int, int] | None]:
        return [PLANES.get(layer.shape) for layer in layers]

    def general(press: Callable[[bytes], bytes], unpress: Callable[[bytes], bytes]) -> Way:
        def encode(layers: Layers) -> bytes:
            return press(b"".join(layer.astype(np.int8).tobytes() for layer in layers))

        def decode(data: bytes, layers: Layers) -> list[np.ndarray]:
            flat = np.frombuffer(unpress(data), np.int8)
            ends = np.cumsum([layer.size for layer in layers])[:-1]
            return [
                part.reshape(layer.shape) for part, layer in zip(np.split(flat, ends), layers, strict=True)
            ]

        return encode, decode

    def decode_ours(data: bytes, layers: Layers) -> list[np.ndarray]:
        return list(decode_levels(data, [layer.shape for layer in layers], planes(layers)))

    return {
        "prunekit": (lambda layers: encode_levels(layers, planes(layers)), decode_ours),
        "gaps and Huffman": (
            lambda layers: [encode_gaps(layer) for layer in layers],
            lambda data, layers: [
                decode_gaps(one, layer.shape) for one, layer in zip(data, layers, strict=True)
            ],
        ),
        "zlib": general(lambda data: zlib.compress(data, 9), zlib.decompress),
        "lzma": general(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
        "zstd": general(zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress),
    }


def size(data: Any) -> int:
    return len(data) if isinstance(data, bytes) else sum(map(len, data))


def entropy(codes: np.ndarray) -> float:
    """Bytes, if the frequency of every code were known for nothing."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def by_pack(codes: Mapping[str, np.ndarray]) -> int:
    """Bytes of the file that `pack` writes of tensors of these names, which is read back."""
    model = nn.Module()
    for name, levels in codes.items():
        *path, last = name.split(".")
        owner = model
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, nn.Parameter(torch.from_numpy(levels.astype(np.float32))))
    with tempfile.TemporaryDirectory() as folder:
        return pack(model, Path(folder) / "small.pk").stat().st_size


def by_nncodec(codes: Layers, python: Path) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npz"
        np.savez(path, **{f"layer{number}.weight": code for number, code in enumerate(codes)})
        command = [str(python), "-c", NNCODEC, str(path), str(Path(folder) / "codes.nnc")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["bytes"], found["bytes_of_zeros"]


def cost(name: str) -> dict[str, float]:
    """Bytes, seconds of the processor and mebibytes beyond the integers, for a large layer at random."""
    rng = np.random.default_rng(0)
    layer = np.zeros(LARGE, np.int32)
    places = rng.choice(layer.size, round(DENSITY * layer.size), replace=False)
    signs = rng.choice([-1, 1], len(places))
    layer.ravel()[places] = signs * np.minimum(1 + np.abs(rng.normal(0, 3, len(places))), 8).astype(np.int32)
    encode, decode = ways()[name]
    encode([layer[:4, :4]])  # tables that are made once
    found: dict[str, float] = {}
    before, began = reset_peak(), time.process_time()
    data = encode([layer])
    found |= {"encode_s": round(time.process_time() - began, 2), "encode_mib": round(peak() - before)}
    before, began = reset_peak(), time.process_time()
    back = decode(data, [layer])
    found |= {"decode_s": round(time.process_time() - began, 2), "decode_mib": round(peak() - before)}
    assert np.array_equal(back[0], layer)
    return {"bytes": size(data), "order-0 entropy": round(entropy(layer)), **found}


def reset_peak() -> float:
    """Mebibytes in use; the peak counts from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most mebibytes in use."""
    return resident("VmHWM") / (1 << 20)


if __name__ == "__main__":
    main()

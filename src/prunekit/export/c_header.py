"""A network in plain C99: its weights as constant tables, and a forward function without malloc."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError, shown
from prunekit.export.c_tables import Tables, decoder, number, table, tables_of
from prunekit.export.common import Exported, compared, example_of, exportable, outputs_of, written
from prunekit.files import path_of
from prunekit.graph.captured_graph import argument, op_name
from prunekit.graph.chain import Applied, Kind, Stage
from prunekit.graph.chain_view import chain_of
from prunekit.graph.reference_run import VerificationError
from prunekit.merge import fold_batch_norms
from prunekit.models.absent import Absent
from prunekit.modes import untouched

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2")
"""What the file is compiled with before it is kept."""

SUPPORTED = (
    "Linear, Conv2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Flatten, Dropout, folded batch norms, ReLU, "
    "ReLU6, LeakyReLU, ELU, SiLU, Softplus, GELU, Sigmoid and Tanh in a row"
)


@dataclass(frozen=True)
class CHeader(Exported):
    """A C header that was written.

    Attributes:
        name: the function is `void NAME_forward(const float *input, float *output)`, for one example.
        table_bytes: bytes of the constant arrays.
        buffer_bytes: bytes of the static buffers between layers.
        forms: how the weights of each layer are stored, by the layer's full name.
    """

    name: str
    table_bytes: int
    buffer_bytes: int
    forms: dict[str, str] = field(default_factory=dict)


def export_c(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs | None,
    *,
    name: str | None = None,
    huffman: bool = False,
) -> CHeader:
    """A chain of layers as a C header, to be included by one C file.

    Weights of each layer are stored in the form of the fewest bytes: dense, or with gaps between them of one
    byte; as floats, or as codes of one byte into a codebook where a layer has at most 256 values. With
    `huffman` there is one more: a stream of canonical Huffman codes of gaps and values, which the layer reads
    as it computes, so that nothing is unpacked. Where there is a C compiler (`gcc` or `cc`) the file is
    compiled with `FLAGS` and run on the examples, and only kept if its outputs are PyTorch's.

    Args:
        model: linear and convolution layers with what is in `SUPPORTED`; computes in float32.
        path: of the header.
        example_inputs: (N, ...) of its inputs.
        name: what the functions and tables are called; by default the file's name.
        huffman: whether weights may be Huffman-coded.

    Raises:
        InputError: for no examples, a path that is a folder, or a name that is no C identifier.
        ModelError: naming the first layer or operation that is not supported.
        VerificationError: if the compiled function gives other outputs, or does not compile.
    """
    if name is None:
        name = (
            "net_"
            + "".join(c if c.isascii() and c.isalnum() else "_" for c in path_of("path", path).stem)[:40]
        )
    if not isinstance(name, str) or not (name.isidentifier() and name.isascii()) or name.startswith("_"):
        raise InputError(f"name = {shown(name)}: write letters, digits and '_', with a letter first")
    inputs = example_of(example_inputs)
    if not isinstance(inputs, Tensor):
        raise InputError("example_inputs: a network in C takes one tensor (N, ...)")
    model = exportable(model)
    outputs = outputs_of(model, inputs)
    if len(outputs) > 1:
        raise ModelError(f"the model gives {len(outputs)} tensors; a network in C gives one")
    reference = outputs[0]
    with written(path) as (path, temporary):
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            fold_batch_norms(model, inputs)
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            _check_hooks(model, inputs)
        writer = _Writer(name, tuple(inputs.shape[1:]), huffman=huffman)
        for stage in chain_of(model, inputs).stages:
            writer.add(stage)
        if writer.shape != tuple(reference.shape[1:]) and prod(writer.shape) != prod(reference.shape[1:]):
            raise ModelError(
                f"the chain ends with {list(writer.shape)}, the model with {list(reference.shape[1:])}"
            )
        temporary.write_text(writer.header(), encoding="ascii", newline="\n")
        found = run_c(temporary, name, inputs, prod(writer.shape))
        deviation = (
            None if found is None else compared([found.reshape(reference.shape)], outputs, "the C function")
        )
    return CHeader(
        path,
        deviation,
        () if deviation is None else (1,),
        name,
        writer.table_bytes,
        writer.buffer_bytes,
        writer.forms,
    )


def _check_hooks(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a network whose hooks change what it gives: they are no part of a chain.

    Raises:
        VerificationError: if they do.
    """
    given = outputs_of(model, inputs)
    with untouched(model):
        without = outputs_of(model, inputs)
    compared(without, given, "the network without its hooks, which are not exported,")


def run_c(header: Path, name: str, inputs: Tensor, outputs: int) -> Tensor | None:
    """(N, outputs) what a header's function gives for examples (N, ...); None without a C compiler.

    Raises:
        VerificationError: if it does not compile.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        source, library = Path(place) / "net.c", Path(place) / "net.so"
        source.write_bytes(header.read_bytes())
        command = [compiler, *FLAGS, "-shared", "-fPIC", "-o", str(library), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise VerificationError(f"the C header does not compile: {shown(done.stderr, 500)}")
        forward = getattr(ctypes.CDLL(str(library)), f"{name}_forward")
        found = torch.empty(len(inputs), outputs)
        for example, row in zip(inputs.contiguous(), found, strict=True):
            forward(ctypes.c_void_p(example.data_ptr()), ctypes.c_void_p(row.data_ptr()))
    return found


# ---- operations ----------------------------------------------------------------------------------------

_PLAIN = {
    "relu": "x < 0.0f ? 0.0f : x",
    "relu6": "x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "tanh": "tanhf(x)",
    "silu": "x / (1.0f + expf(-x))",
}
_MODULES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu"}
_PASSED = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, Absent)


def _pointwise(stage: Stage) -> str | None:
    """What an activation makes of `x`; empty for one that passes it on; None for one that is not known."""
    module = stage.module
    if module is None:
        assert isinstance(stage.run, Applied)
        nodes = stage.run.nodes
        if all(op_name(node) in ("dropout", "feature_dropout", "alias", "detach") for node in nodes):
            return ""
        return _PLAIN.get(op_name(nodes[0])) if len(nodes) == 1 else None
    if isinstance(module, _PASSED):
        return ""
    if type(module) in _MODULES:
        return _PLAIN[_MODULES[type(module)]]
    if isinstance(module, nn.LeakyReLU):
        return f"x > 0.0f ? x : {number(module.negative_slope)} * x"
    if isinstance(module, nn.ELU):
        return f"x > 0.0f ? x : {number(module.alpha)} * expm1f(x)"
    if isinstance(module, nn.Softplus):
        beta, bound = number(module.beta), number(module.threshold)
        return f"x * {beta} > {bound} ? x : log1pf(expf(x * {beta})) / {beta}"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "0.5f * x * (1.0f + erff(x * 0.707106781f))"
    return None


def _pool_module(stage: Stage) -> nn.Module | None:
    """The pooling of a stage as a module, also where it is called as a function."""
    if stage.module is not None:
        return stage.module
    assert isinstance(stage.run, Applied)
    node = stage.run.nodes[0]

    def given(*names: str) -> list[Any]:
        return [argument(node, name) for name in names]

    if op_name(node) in ("max_pool2d", "max_pool2d_with_indices"):
        size, stride, padding, dilation, ceil = given(
            "kernel_size", "stride", "padding", "dilation", "ceil_mode"
        )
        return nn.MaxPool2d(size, stride or None, padding, dilation, ceil_mode=ceil)
    if op_name(node) == "avg_pool2d":
        size, stride, padding, ceil, whole, divisor = given(
            "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        )
        return nn.AvgPool2d(size, stride or None, padding, ceil, whole, divisor)
    if op_name(node) == "adaptive_avg_pool2d":
        return nn.AdaptiveAvgPool2d(argument(node, "output_size"))
    return None


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


class _Writer:
    """The text of a header, operation by operation.

    Attributes:
        shape: of one example behind the last operation.
    """

    def __init__(self, name: str, shape: tuple[int, ...], *, huffman: bool) -> None:
        self.name, self.shape = name, shape
        self._coder = name if huffman else None
        self._decoder = ""
        self.table_bytes = self.buffer_bytes = 0
        self.forms: dict[str, str] = {}
        self._entries = prod(shape)
        self._tables: list[str] = []
        self._steps: list[tuple[str, int]] = []  # C between `x` and `y`, and how many numbers `y` has

    def add(self, stage: Stage) -> None:
        """One more operation.

        Raises:
            ModelError: naming it, if it is not supported.
        """
        written = False
        if stage.kind is Kind.FLATTEN:
            self.shape, written = (prod(self.shape),), True
        elif stage.kind is Kind.LAYER:
            written = self._layer(stage)
        elif stage.kind is Kind.POOL:
            written = self._pool(_pool_module(stage))
        elif stage.kind is Kind.POINTWISE:
            found = _pointwise(stage)
            written = found is not None
            if found:
                size = prod(self.shape)
                code = f"for (int i = 0; i < {size}; i++) {{ const float x = in[i]; out[i] = {found}; }}"
                self._steps.append((code, size))
        if not written:
            what = f" ({type(stage.module).__name__})" if stage.module is not None else ""
            raise ModelError(
                f"{shown(stage.name)}{what} cannot be written in C as it is; what can is {SUPPORTED}"
            )

    def _store(self, stage: Stage, weight: Tensor, bias: Tensor | None) -> tuple[Tables, str]:
        """The tables of a layer, and the expression for the bias of row `o`."""
        numbers = [weight] if bias is None else [weight, bias]
        if not all(bool(each.isfinite().all()) for each in numbers):
            raise ModelError(f"{shown(stage.name)} holds weights that are not finite")
        place = f"{self.name}_t{len(self.forms)}"
        tables = tables_of(place, weight.flatten(1), self._coder)
        if tables.huffman:
            self._decoder = decoder(self.name)
        self._tables.append(f"/* {self._label(stage.name)}: {tables.form} */\n{tables.text}")
        self.table_bytes += tables.size
        self.forms[stage.name] = tables.form
        if bias is None or not bool(bias.any()):
            return tables, "0.0f"
        self._tables.append(table("float", f"{place}_b", bias.tolist()))
        self.table_bytes += 4 * len(bias)
        return tables, f"{place}_b[o]"

    def _label(self, name: str) -> str:
        """A layer's name as it may stand in a comment."""
        return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[:100]

    def _layer(self, stage: Stage) -> bool:
        layer = stage.module
        assert layer is not None
        if isinstance(layer, nn.Linear) and len(self.shape) == 1:
            tables, bias = self._store(
                stage, layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
            )
            code = (
                f"{tables.start}\n  for (int o = 0; o < {layer.out_features}; o++) {{\n"
                f"    float sum = {bias};\n"
                f"    {tables.loop}      sum += w * in[k];\n    }}\n    out[o] = sum;\n  }}"
            )
            self.shape = (layer.out_features,)
            self._steps.append((code, layer.out_features))
            return True
        return isinstance(layer, nn.Conv2d) and len(self.shape) == 3 and self._convolution(stage, layer)

    def _convolution(self, stage: Stage, layer: nn.Conv2d) -> bool:
        if layer.padding_mode != "zeros":
            return False
        shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        (_, height, width), (filters, rows, columns) = self.shape, shape
        left, _, top, _ = layer._reversed_padding_repeated_twice
        (kh, kw), (sy, sx), (dy, dx) = layer.kernel_size, layer.stride, layer.dilation
        each, made = layer.in_channels // layer.groups, filters // layer.groups
        bias_tensor = None if layer.bias is None else layer.bias.detach()
        tables, bias = self._store(stage, layer.weight.detach(), bias_tensor)
        group = f"o / {made} * {each} + " if layer.groups > 1 else ""
        code = f"""{tables.start}
  for (int o = 0; o < {filters}; o++) {{
    float *const map = out + o * {rows * columns};
    for (int p = 0; p < {rows * columns}; p++) map[p] = {bias};
    {tables.loop}      const float *const from = in + ({group}k / {kh * kw}) * {height * width};
      const int top = k / {kw} % {kh} * {dy} - {top}, left = k % {kw} * {dx} - {left};
      for (int r = 0; r < {rows}; r++) {{
        const int y = r * {sy} + top;
        if (y < 0 || y >= {height}) continue;
        for (int c = 0; c < {columns}; c++) {{
          const int x = c * {sx} + left;
          if (x >= 0 && x < {width}) map[r * {columns} + c] += w * from[y * {width} + x];
        }}
      }}
    }}
  }}"""
        self.shape = shape
        self._steps.append((code, prod(shape)))
        return True

    def _pool(self, pool: nn.Module | None) -> bool:
        if len(self.shape) != 3:
            return False
        channels, height, width = self.shape
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            if pool.output_size is None or _pair(pool.output_size) != (1, 1):
                return False
            pool = nn.AvgPool2d((height, width))
        largest = isinstance(pool, nn.MaxPool2d)
        if not isinstance(pool, nn.MaxPool2d | nn.AvgPool2d) or (not largest and pool.ceil_mode):
            return False
        _, rows, columns = tuple(pool(torch.zeros(1, *self.shape)).shape[1:])
        (kh, kw), (sy, sx), (top, left) = map(_pair, (pool.kernel_size, pool.stride, pool.padding))
        dy, dx = _pair(pool.dilation) if isinstance(pool, nn.MaxPool2d) else (1, 1)
        start, step, end = "-INFINITY", "if (v > found || v != v) found = v;", "found"
        if isinstance(pool, nn.AvgPool2d):
            count = "count" if not pool.count_include_pad and not pool.divisor_override else None
            start, step = "0.0f", "found += v;" + (" count += 1.0f;" if count else "")
            end = f"found / {count or number(pool.divisor_override or kh * kw)}"
        counting = "float count = 0.0f; " if "count" in step else ""
        code = f"""for (int o = 0; o < {channels}; o++)
    for (int r = 0; r < {rows}; r++)
      for (int c = 0; c < {columns}; c++) {{
        float found = {start};
        {counting}
        for (int a = 0; a < {kh}; a++)
          for (int b = 0; b < {kw}; b++) {{
            const int y = r * {sy} + a * {dy} - {top}, x = c * {sx} + b * {dx} - {left};
            if (y < 0 || y >= {height} || x < 0 || x >= {width}) continue;
            const float v = in[(o * {height} + y) * {width} + x];
            {step}
          }}
        out[(o * {rows} + r) * {columns} + c] = {end};
      }}"""
        self.shape = (channels, rows, columns)
        self._steps.append((code, prod(self.shape)))
        return True

    def header(self) -> str:
        """The whole text."""
        name, entries, outputs = self.name, self._entries, prod(self.shape)
        between = [size for _, size in self._steps[:-1]]
        sizes = [max(between[turn::2], default=0) for turn in (0, 1)]
        self.buffer_bytes = 4 * sum(sizes)
        calls, source = [], "input"
        for place in range(len(self._steps)):
            target = "output" if place == len(self._steps) - 1 else f"buffer{place % 2}"
            calls.append(f"  {name}_step{place}({source}, {target});")
            source = target
        buffers = [f"  static float buffer{turn}[{size}];" for turn, size in enumerate(sizes) if size]
        steps = [
            f"static void {name}_step{place}(const float *in, float *out) {{\n  {code}\n}}\n"
            for place, (code, _) in enumerate(self._steps)
        ]
        return "\n".join(
            [
                f"/* Made by prunekit. Include it in one C file, which is linked with -lm.\n"
                f"   input: {entries} floats of one example, channels first; output: {outputs} floats.\n"
                f"   Tables: {self.table_bytes} bytes; static buffers: {self.buffer_bytes} bytes, so that\n"
                f"   one call at a time may run. */",
                f"#ifndef PRUNEKIT_{name}_H\n#define PRUNEKIT_{name}_H\n",
                "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n",
                f"#define {name}_INPUTS {entries}\n#define {name}_OUTPUTS {outputs}\n",
                *self._tables,
                self._decoder,
                *steps,
                f"void {name}_forward(const float *input, float *output);\n",
                f"void {name}_forward(const float *input, float *output) {{",
                *buffers,
                *calls,
                "}\n\n#endif\n",
            ]
        )

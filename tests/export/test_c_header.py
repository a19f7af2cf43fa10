"""A network in C computes what PyTorch computes; what C cannot hold is refused by name."""

import itertools
import shutil
import subprocess

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from prunekit.cli import run
from prunekit.errors import InputError, ModelError
from prunekit.export import export_c
from prunekit.export.c_tables import FAR, _by_codes, tables_of
from prunekit.graph import VerificationError
from prunekit.models import ModelSettings, create
from prunekit.saving import Architecture, save_pretrained

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")


def randomly_pruned(model, kept, *, levels=None):
    """Weights that stay at random, on an even grid of levels where asked."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(torch.rand(weight.shape, generator=generator) < kept)
                if levels:
                    step = 2 * weight.abs().max() / levels
                    weight.copy_((weight / step).round() * step)
    return model


def run_main(folder, header, name, inputs, outputs):
    """The outputs of a program of its own that reads examples and prints what the function gives."""
    (folder / "main.c").write_text(
        f"""#include <stdio.h>
#include "{header.name}"
static float input[{name}_INPUTS], output[{name}_OUTPUTS];
int main(void) {{
  while (fread(input, sizeof(float), {name}_INPUTS, stdin) == {name}_INPUTS) {{
    {name}_forward(input, output);
    for (int i = 0; i < {name}_OUTPUTS; i++) printf("%.9g ", (double)output[i]);
  }}
  return 0;
}}"""
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, "main.c", "-o", "main", "-lm"], cwd=folder, check=True)
    done = subprocess.run([folder / "main"], input=inputs.numpy().tobytes(), capture_output=True, check=True)
    return torch.tensor([float(word) for word in done.stdout.split()]).reshape(len(inputs), outputs)


@needs_gcc
@pytest.mark.parametrize(("levels", "huffman"), [(None, False), (30, False), (30, True)])
@pytest.mark.parametrize(("which", "kept"), [("lenet_300_100", 0.08), ("lenet5", 0.05)])
def test_both_lenets_as_a_program_of_their_own(tmp_path, which, kept, levels, huffman):
    model = randomly_pruned(create(which, (1, 28, 28), 10, seed=0), kept, levels=levels)
    inputs = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    done = export_c(model, tmp_path / "net.h", inputs, huffman=huffman)
    found = run_main(tmp_path, done.path, done.name, inputs, 10)
    with torch.no_grad():
        torch.testing.assert_close(found, model(inputs), rtol=0, atol=1e-5)
    form = "Huffman" if huffman else "gaps"
    assert all(each.startswith(form) for each in list(done.forms.values())[:2])
    if huffman:
        assert done.table_bytes < 0.75 * export_c(model, tmp_path / "plain.h", inputs).table_bytes
    if levels:
        assert all("codes" in form for form in list(done.forms.values())[:2])
    dense = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert done.table_bytes < dense * kept * (1 if levels else 2)
    assert done.deviation <= 1e-5


@needs_gcc
def test_the_command_with_huffman_codes(tmp_path):
    lenet = Architecture(ModelSettings.parse("lenet_300_100"), (1, 28, 28), 10)
    model = randomly_pruned(lenet.build(), 0.08, levels=30)
    save_pretrained(model, tmp_path / "net", architecture=lenet)
    plain, coded = tmp_path / "plain.h", tmp_path / "coded.h"
    assert run(["export", str(tmp_path / "net"), "--to", "c", "--out", str(plain)]) == 0
    assert run(["export", str(tmp_path / "net"), "--to", "c", "--huffman", "--out", str(coded)]) == 0
    assert coded.stat().st_size < 0.75 * plain.stat().st_size
    inputs = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = run_main(tmp_path, coded, "net_coded", inputs, 10)
        torch.testing.assert_close(found, model(inputs), rtol=0, atol=1e-5)


def test_huffman_codes_are_for_c_alone(tmp_path, capsys):
    words = ["export", "{name: mlp, hidden: [4]}", "--input-shape", "3", "--out", str(tmp_path / "net")]
    assert run([*words, "--to", "torch", "--huffman"]) == 2
    assert "--huffman goes with --to c, not with --to torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Called(nn.Module):
    """Operations as functions, a batch norm, a weight norm, groups, dilation and padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=(1, 2), stride=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same")
        self.fc = parametrizations.weight_norm(nn.Linear(6 * 3 * 5, 7))

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.norm(self.conv(x))), 2, stride=1, padding=1)
        x = F.avg_pool2d(torch.relu(self.deep(x)), 3, 2, 1)
        return torch.sigmoid(self.fc(F.dropout(x.flatten(1), training=self.training)))


@needs_gcc
def test_operations_called_as_functions_with_a_folded_batch_norm(tmp_path):
    torch.manual_seed(0)
    model = Called()
    model(torch.randn(16, 2, 9, 7))  # statistics of the batch norm
    model.eval()
    inputs = torch.randn(3, 2, 9, 7)
    done = export_c(model, tmp_path / "net.h", inputs)
    with torch.no_grad():
        torch.testing.assert_close(
            run_main(tmp_path, done.path, done.name, inputs, 7), model(inputs), rtol=0, atol=1e-5
        )
    assert isinstance(model.norm, nn.BatchNorm2d)


@needs_gcc
@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SiLU(), nn.Softplus(2.0), nn.GELU(),
        nn.Sigmoid(), nn.Tanh(), nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
    ],
    ids=lambda layer: str(layer).split("(")[0],
)  # fmt: skip
def test_each_operation(tmp_path, layer):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), layer)
    inputs = 4 * torch.randn(2, 1, 9, 8)
    with torch.no_grad():
        expected = model(inputs).flatten(1)
    done = export_c(model, tmp_path / "net.h", inputs)
    found = run_main(tmp_path, done.path, done.name, inputs, expected.shape[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@needs_gcc
def test_no_number_is_passed_on_as_pytorch_does(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU6())
    inputs = torch.randn(1, 1, 4, 4)
    export_c(model, tmp_path / "net.h", inputs, name="net")
    inputs[0, 0, 0, 0] = inputs[0, 0, 3, 2] = torch.nan
    found = run_main(tmp_path, tmp_path / "net.h", "net", inputs, 8)
    expected = model(inputs).detach().flatten(1)
    assert int(expected.isnan().sum()) == 4
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("compiler", [True, False])
def test_hooks_that_change_outputs_are_refused_and_others_are_not(tmp_path, monkeypatch, compiler):
    if not compiler:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    inputs, path = torch.randn(3, 4), tmp_path / "net.h"
    for change in (
        lambda net, hook: net.register_forward_hook(hook),
        lambda net, hook: net[0].register_forward_hook(hook),
        lambda net, hook: net[1].register_forward_pre_hook(
            lambda module, given: hook(module, given, given[0])
        ),
    ):
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        change(net, lambda module, given, output: output + 1)
        with pytest.raises(VerificationError, match="the network without its hooks, which are not exported"):
            export_c(net, path, inputs)
        assert not path.exists()
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net.register_forward_hook(lambda module, given, output: None)
    assert (export_c(net, path, inputs).deviation is None) != compiler or shutil.which("gcc") is None


def numbers_in(text, name):
    return [
        float(word.strip().rstrip("f"))
        for word in text.split(f" {name}[")[1].split("{")[1].split("}")[0].split(",")
    ]


@pytest.mark.parametrize("columns", [1, 254, 255, 256, 257, 510, 511, 1100])
def test_gaps_decoded_by_hand(columns):
    weight = torch.zeros(4, columns)
    weight[0, -1], weight[1, 0], weight[3, columns // 2], weight[3, -1] = 1.5, 2, 3, 4
    found = tables_of("t", torch.cat([weight, torch.zeros(40, columns)]))
    assert found.form.startswith("gaps")
    counts, gaps, values = (numbers_in(found.text, f"t_{which}") for which in ("n", "gap", "w"))
    decoded, gap, value = torch.zeros(4, columns), iter(gaps), iter(values)
    for row, count in zip(decoded, counts[:4], strict=True):
        place = 0
        for step in itertools.islice(gap, int(count)):
            place += int(step)
            if step != FAR:
                row[place] = next(value)
                place += 1
    assert torch.equal(decoded, weight)


def code_by_hand(counts):
    """From strings of bits to places, by counting upwards: so many codes of one bit, of two, and so on."""
    known, code = {}, 0
    for length, count in enumerate(counts, 1):
        for _ in range(int(count)):
            known[format(code, f"0{length}b")] = len(known)
            code += 1
        code *= 2
    return known


def read_symbol(bits, known):
    """The place of the next code of a stream of bits."""
    code = next(bits)
    while code not in known:
        code += next(bits)
    return known[code]


@pytest.mark.parametrize("levels", [1, 2, 12, None])
@pytest.mark.parametrize(("rows", "columns", "kept"), [(1, 3, 1), (5, 700, 9), (40, 300, 900), (3, 90, 270)])
def test_streams_decoded_by_hand(rows, columns, kept, levels):
    generator = torch.Generator().manual_seed(rows)
    flat = torch.zeros(rows * columns)
    drawn = torch.randn(kept, generator=generator)
    if levels:
        drawn = (torch.randint(levels, (kept,), generator=generator) + 1) / 4
    flat[torch.randperm(rows * columns, generator=generator)[:kept]] = drawn
    found = _by_codes("t", flat.reshape(rows, columns), "net")
    read = {which: numbers_in(found.text, f"t_{which}") for which in ("bits", "gn", "gap")}
    bits = iter("".join(format(int(byte), "08b") for byte in read["bits"]))
    steps, coded = code_by_hand(read["gn"]), levels is not None and kept > 1
    values = numbers_in(found.text, "t_book" if coded else "t_w")
    known, loose = code_by_hand(numbers_in(found.text, "t_wn")) if coded else {}, iter(values)
    decoded, place = torch.zeros(rows * columns), 0
    for _ in range(kept):
        while (gap := read["gap"][read_symbol(bits, steps)]) == FAR:
            place += FAR
        place += int(gap)
        decoded[place] = values[read_symbol(bits, known)] if coded else next(loose)
        place += 1
    assert torch.equal(decoded, flat)


@needs_gcc
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_streams_of_no_and_few_weights_in_a_convolution_and_behind_it(tmp_path, kept):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2000))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.zero_().view(-1)[torch.arange(kept) * 11] = 0.5
    inputs = torch.randn(2, 2, 6, 6)
    done = export_c(model, tmp_path / "net.h", inputs, huffman=True)
    assert done.forms["3"].startswith("Huffman")
    with torch.no_grad():
        torch.testing.assert_close(
            run_main(tmp_path, done.path, done.name, inputs, 2000), model(inputs), rtol=0, atol=1e-5
        )


def test_a_layer_of_zeros_alone_and_names_that_would_be_code(tmp_path):
    inner = nn.Linear(3, 2)
    nn.init.zeros_(inner.weight)
    model = nn.Sequential()
    model.add_module('*/ int evil; /* "', inner)
    done = export_c(model, tmp_path / "a-b; int evil;.h", torch.randn(2, 3))
    text = done.path.read_text()
    assert "int evil" not in text
    assert done.name == "net_a_b__int_evil_"


CHAIN = nn.Sequential(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "message"),
    [
        (CHAIN, None, {}, InputError, "give a tensor"),
        (CHAIN, torch.randn(0, 3), {}, InputError, "at least one"),
        (CHAIN, torch.randn(2, 4), {}, ModelError, "fails on the example inputs"),
        (CHAIN, torch.randn(2, 3), {"name": "a b"}, InputError, "name = 'a b': write letters, digits"),
        (CHAIN, torch.randn(2, 3), {"name": 5}, InputError, "name = 5: write letters, digits"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)),
            torch.randn(2, 3),
            {},
            ModelError,
            "'1' .Softmax. cannot",
        ),
        (nn.Sequential(nn.Conv1d(1, 2, 3)), torch.randn(2, 1, 5), {}, ModelError, "'0' .Conv1d. cannot"),
        (
            create("resnet20", (3, 8, 8), 10, seed=0),
            torch.randn(2, 3, 8, 8),
            {},
            ModelError,
            "no link of a chain",
        ),
    ],
)
def test_what_is_refused_leaves_no_file(tmp_path, model, inputs, options, error, message):
    with pytest.raises(error, match=message):
        export_c(model, tmp_path / "net.h", inputs, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_and_weights_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        export_c(CHAIN, tmp_path, torch.randn(2, 3))
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.constant_(model[0].weight, float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        export_c(model, tmp_path / "net.h", torch.randn(2, 3))

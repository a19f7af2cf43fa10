import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from forged import redescribed
from prunekit.errors import DataError, InputError, ModelError
from prunekit.masks import Masks
from prunekit.models import ModelSettings
from prunekit.pruning import Pruned, prune
from prunekit.runtime import SparseConv2d, SparseLinear
from prunekit.saving import Architecture, load_masks, load_pretrained, save_pretrained
from small_nets import Tied, blobs, convnet, copied, mlp, recipe, same

LENET = Architecture(ModelSettings.parse("lenet_300_100"), (6, 6), 3)


@pytest.fixture
def pruned() -> Pruned:
    return prune(convnet(), recipe())


@pytest.fixture
def saved(pruned, tmp_path):
    return save_pretrained(pruned, tmp_path / "net")


def files(folder) -> list[str]:
    return sorted(os.listdir(folder))


class TestRoundTrip:
    def test_values_buffers_and_masks(self, pruned, saved):
        model = load_pretrained(saved, convnet(seed=5))
        assert same(copied(model), copied(pruned.model))
        assert load_masks(saved) == pruned.masks
        assert files(saved) == ["model.safetensors", "prunekit.json"]
        inputs = torch.randn(2, 4, 6, 6)
        assert torch.equal(model.eval()(inputs), pruned.model.eval()(inputs))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_precisions(self, dtype, tmp_path):
        model = mlp(10, 16, 3, dtype=dtype)
        prune(model, recipe())
        folder = save_pretrained(prune(model, recipe()), tmp_path / "net")
        assert same(copied(load_pretrained(folder, mlp(10, 16, 3, seed=1, dtype=dtype))), copied(model))

    def test_channels_last(self, tmp_path):
        model = convnet().to(memory_format=torch.channels_last)
        result = prune(model, recipe())
        save_pretrained(result, tmp_path / "net")
        assert same(copied(load_pretrained(tmp_path / "net", convnet(seed=1))), copied(model))

    def test_an_architecture_needs_no_model(self, tmp_path):
        model = LENET.build()
        result = prune(model, recipe())
        save_pretrained(result, tmp_path / "net", architecture=LENET)
        assert same(copied(load_pretrained(tmp_path / "net")), copied(model))

    def test_a_fresh_process(self, tmp_path):
        model = LENET.build().eval()
        save_pretrained(prune(model, recipe()), tmp_path / "net", architecture=LENET)
        inputs = torch.randn(4, 6, 6)
        torch.save(inputs, tmp_path / "inputs.pt")
        code = (
            "import sys, torch; torch.set_num_threads(1)\n"
            "from prunekit.saving import load_pretrained, load_masks\n"
            "out = load_pretrained('net').eval()(torch.load('inputs.pt', weights_only=True))\n"
            "torch.save([out, load_masks('net').kept, 'torch._dynamo' in sys.modules], 'out.pt')"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100)
        out, kept, compiler = torch.load(tmp_path / "out.pt", weights_only=True)
        assert not compiler  # loading it takes forty times as long as loading the network
        assert torch.equal(out, model(inputs))
        assert kept == sum(int((p != 0).sum()) for p in model.parameters() if p.dim() == 2)

    def test_wrappers_are_looked_through(self, tmp_path):
        inner = mlp(10, 16, 3)
        result = prune(torch.compile(inner, backend="eager"), recipe())
        save_pretrained(result, tmp_path / "net")
        wrapped = nn.DataParallel(mlp(10, 16, 3, seed=1))
        assert load_pretrained(tmp_path / "net", wrapped) is wrapped
        assert same(copied(wrapped.module), copied(inner))

    def test_a_plain_model_with_masks_or_without(self, tmp_path):
        model = mlp(10, 16, 3)
        masks = prune(model, recipe()).masks
        save_pretrained(model, tmp_path / "with", masks=masks)
        save_pretrained(model, tmp_path / "without")
        assert load_masks(tmp_path / "with") == masks
        assert len(load_masks(tmp_path / "without")) == 0
        for name in ("with", "without"):
            assert same(copied(load_pretrained(tmp_path / name, mlp(10, 16, 3, seed=1))), copied(model))

    def test_removed_weights_cost_a_bit(self, tmp_path):
        sparse = prune(mlp(100, 100, 10), recipe(schedule={"name": "one_shot", "sparsity": 0.95}))
        sizes = []
        for name, model in (("dense", mlp(100, 100, 10)), ("sparse", sparse)):
            sizes.append((save_pretrained(model, tmp_path / name) / "model.safetensors").stat().st_size)
        assert sizes[1] < sizes[0] * (0.05 + 1 / 32) + 2000

    def test_what_is_described(self, tmp_path):
        chosen = recipe(retrain={"name": "fine_tune", "training": {"iterations": 0}})
        result = prune(mlp(10, 3), chosen, blobs(), evaluate=lambda model: {"bad": float("nan")})
        description = json.loads((save_pretrained(result, tmp_path / "n") / "prunekit.json").read_text())
        assert description["recipe"] == chosen.to_dict()
        assert description["pruned"] == {"0.weight": {"shape": [3, 10], "kept": 15}}
        assert description["history"][0]["train_loss"] is None
        assert description["history"][0]["kept"] == 15


class TestTied:
    def test_stored_once_and_tied_again(self, tmp_path):
        model = Tied()
        result = prune(model, recipe())
        folder = save_pretrained(result, tmp_path / "net")
        stored = safetensors.torch.load_file(folder / "model.safetensors")
        assert {name for name in stored if name.startswith(("embed", "out"))} == {
            "embed.weight#mask",
            "embed.weight#values",
        }
        again = load_pretrained(folder, Tied())
        assert same(copied(again), copied(model))
        assert again.out.weight is again.embed.weight

    def test_a_model_that_was_not_tied_is_tied(self, tmp_path):
        folder = save_pretrained(prune(Tied(), recipe()), tmp_path / "net")
        loose = Tied()
        loose.out.weight = nn.Parameter(torch.zeros(11, 6))
        load_pretrained(folder, loose)
        assert loose.out.weight is loose.embed.weight
        with torch.no_grad():
            loose.embed.weight.fill_(2)
        assert bool((loose.out.weight == 2).all())

    def test_the_mask_may_be_under_either_name(self, tmp_path):
        model = Tied()
        masks = Masks({"out.weight": torch.rand(11, 6) > 0.5})
        masks.apply(model)
        save_pretrained(model, tmp_path / "net", masks=masks)
        assert same(copied(load_pretrained(tmp_path / "net", Tied())), copied(model))

    def test_equal_values_are_not_tied(self, tmp_path):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].load_state_dict(model[0].state_dict())
        save_pretrained(model, tmp_path / "net")
        again = load_pretrained(tmp_path / "net", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        assert again[0].weight is not again[1].weight


class TestReplacing:
    def test_an_earlier_save(self, saved):
        save_pretrained(mlp(10, 3), saved)
        assert same(copied(load_pretrained(saved, mlp(10, 3, seed=1))), copied(mlp(10, 3)))
        assert files(saved.parent) == ["net"]

    def test_an_empty_folder_and_a_deep_one(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert files(save_pretrained(mlp(3, 2), tmp_path / "empty")) == ["model.safetensors", "prunekit.json"]
        assert files(save_pretrained(mlp(3, 2), tmp_path / "a" / "b" / "c")) == [
            "model.safetensors",
            "prunekit.json",
        ]

    def test_nothing_else_is_replaced(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years")
        with pytest.raises(
            InputError, match="is not empty and holds no earlier save: it will not be replaced"
        ):
            save_pretrained(mlp(3, 2), tmp_path)
        (tmp_path / "prunekit.json").write_text("{}")
        with pytest.raises(InputError, match=r"holds thesis\.tex beside an earlier save: it will not be"):
            save_pretrained(mlp(3, 2), tmp_path)
        with pytest.raises(InputError, match="is a file: give a folder"):
            save_pretrained(mlp(3, 2), tmp_path / "thesis.tex")
        assert (tmp_path / "thesis.tex").read_text() == "years"

    @pytest.mark.parametrize("failing", ["write_tensors", "write_json_with_digest"])
    def test_a_failed_write_leaves_the_earlier_save(self, saved, monkeypatch, failing):
        before = {name: (saved / name).read_bytes() for name in files(saved)}

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(f"prunekit.saving.folder.{failing}", full)
        with pytest.raises(OSError, match="No space left on device"):
            save_pretrained(mlp(10, 3), saved)
        assert {name: (saved / name).read_bytes() for name in files(saved)} == before
        assert files(saved.parent) == ["net"]

    def test_a_failed_first_write_leaves_nothing(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("prunekit.saving.folder.write_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(mlp(10, 3), tmp_path / "net")
        assert files(tmp_path) == []

    def test_a_disk_that_is_really_full(self, saved):
        """The limit on the size of files stands in for the disk; safetensors writes past Python here."""
        code = (
            "import resource, signal, sys, torch; sys.path.insert(0, sys.argv[2])\n"
            "from small_nets import mlp\nfrom prunekit.saving import save_pretrained\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try: save_pretrained(mlp(50, 50), sys.argv[1])\n"
            "except OSError as error: print('OSError')"
        )
        before = copied(load_pretrained(saved, convnet()))
        arguments = [sys.executable, "-c", code, str(saved), os.path.dirname(os.path.dirname(__file__))]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
        assert done.stdout.strip() == "OSError", done.stderr
        assert files(saved.parent) == ["net"]
        assert same(before, copied(load_pretrained(saved, convnet())))

    def test_masks_of_another_model(self, tmp_path):
        with pytest.raises(InputError, match=r"no parameter '9\.weight'"):
            save_pretrained(mlp(3, 2), tmp_path / "net", masks=Masks({"9.weight": torch.ones(2, 2).bool()}))
        assert files(tmp_path) == []

    def test_a_state_that_is_not_tensors(self, tmp_path):
        class Odd(nn.Linear):
            def get_extra_state(self):
                return {"a": 1}

            def set_extra_state(self, state):
                pass

        with pytest.raises(ModelError, match="_extra_state of the model's state is a dict: only tensors"):
            save_pretrained(Odd(3, 2), tmp_path / "net")
        assert files(tmp_path) == []


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a bit":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"PK\x03\x04 some other format")


class TestDamaged:
    @pytest.mark.parametrize("how", ["truncated", "a bit", "empty", "missing", "foreign"])
    @pytest.mark.parametrize("load", [load_masks, lambda folder: load_pretrained(folder, convnet())])
    def test_weights(self, saved, how, load):
        damage(saved / "model.safetensors", how)
        message = (
            "cannot read .*No such file" if how == "missing" else "is damaged or truncated: its checksum"
        )
        with pytest.raises(DataError, match=rf"model\.safetensors.*|{message}") as caught:
            load(saved)
        assert "model.safetensors" in str(caught.value)

    @pytest.mark.parametrize("how", ["truncated", "empty", "missing", "foreign"])
    @pytest.mark.parametrize("load", [load_masks, lambda folder: load_pretrained(folder, convnet())])
    def test_description(self, saved, how, load):
        damage(saved / "prunekit.json", how)
        message = (
            r"there is no prunekit\.json"
            if how == "missing"
            else r"prunekit\.json is damaged: not valid JSON"
        )
        with pytest.raises(DataError, match=message):
            load(saved)

    @pytest.mark.parametrize("content", ["[]", "{}", "3"])
    def test_another_programs_description(self, saved, content):
        (saved / "prunekit.json").write_text(content)
        with pytest.raises(DataError, match="was not written by prunekit"):
            load_pretrained(saved, convnet())

    def test_another_format(self, saved):
        redescribed(saved, format=99, prunekit="9.9")
        with pytest.raises(
            DataError, match=r"is of format 99, this prunekit reads format 2: .*prunekit '9\.9'"
        ):
            load_pretrained(saved, convnet())

    @pytest.mark.parametrize(
        "changes",
        [
            {"pruned": {"7.weight": {"shape": [3, 9], "kept": 12}}},
            {"pruned": {"7.weight": {"kept": 12}}},
            {"pruned": {"8.weight": {"shape": [3, 8], "kept": 12}}},
            {"pruned": {"7.weight": {"shape": "abc"}}},
            {"pruned": {"7.weight": None}},
            {"pruned": 3},
        ],
    )
    @pytest.mark.parametrize("load", [load_masks, lambda folder: load_pretrained(folder, convnet())])
    def test_files_that_disagree(self, saved, changes, load):
        redescribed(saved, **changes)
        with pytest.raises(
            DataError,
            match=r"model\.safetensors does not fit prunekit\.json|prunekit\.json was not .* pruned",
        ):
            load(saved)

    @pytest.mark.parametrize("tied", [{"a": "b"}, 3, ["a"]])
    def test_ties_that_disagree(self, saved, tied):
        redescribed(saved, tied=tied)
        with pytest.raises(DataError, match=r"does not fit prunekit\.json|prunekit\.json was not .* tied"):
            load_pretrained(saved, convnet())

    @pytest.mark.parametrize(
        "architecture",
        [
            3,
            {},
            {"model": "no_such_net", "input_shape": [4], "outputs": 3},
            {"model": "lenet5", "outputs": 3},
        ],
    )
    def test_an_architecture_that_cannot_be(self, saved, architecture):
        redescribed(saved, architecture=architecture)
        with pytest.raises(DataError, match=r"net"):
            load_pretrained(saved)

    def test_no_folder(self, tmp_path):
        with pytest.raises(DataError, match="holds no network saved by prunekit"):
            load_pretrained(tmp_path / "nowhere", mlp(3, 2))


class TestAnotherModel:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (mlp(10, 3), r"is another one: the file lacks 0\.bias|is another one: .*the model lacks"),
            (convnet(channels=4), r"has shape \(4,.*\) in the model, \(8,.*\) in"),
        ],
    )
    def test_it_is_refused_and_left_as_it_was(self, saved, model, message):
        before = copied(model)
        with pytest.raises(ModelError, match=message):
            load_pretrained(saved, model)
        assert same(before, copied(model))

    def test_names_of_both_sides(self, saved):
        message = r"the file lacks '2\.bias', '2\.weight'; the model lacks '1\.bias', "
        with pytest.raises(ModelError, match=message):
            load_pretrained(saved, mlp(10, 16, 3))

    def test_no_architecture_and_no_model(self, saved):
        with pytest.raises(InputError, match="does not say how its network is built"):
            load_pretrained(saved)

    def test_a_file_does_not_decide_what_is_imported(self, saved, tmp_path):
        wanted = {"model": {"name": "os:getcwd"}, "input_shape": [4], "outputs": 3}
        redescribed(saved, architecture=wanted)
        with pytest.raises(InputError, match="is of os:getcwd: build it and give"):
            load_pretrained(saved)


@pytest.mark.parametrize("sparse", [SparseLinear, SparseConv2d])
def test_networks_that_run_sparse_are_not_saved_and_an_earlier_save_stays(sparse, pruned, saved):
    model = pruned.model
    name, layer = next(
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d if sparse is SparseConv2d else nn.Linear)
    )
    setattr(model, name, sparse(layer) if sparse is SparseConv2d else sparse(layer.weight, layer.bias))
    before = (saved / "model.safetensors").read_bytes()
    for given in (pruned, model):
        with pytest.raises(ModelError, match=f"{name} runs sparse on this machine: save the network before"):
            save_pretrained(given, saved)
    assert (saved / "model.safetensors").read_bytes() == before

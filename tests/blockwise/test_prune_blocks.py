"""Networks pruned block by block, against the same networks pruned whole."""

import copy
import gc
import json
import os
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parameter import is_lazy

import prunekit.blockwise.block_run as block_run
import prunekit.blockwise.pruning as pruning
from prunekit import prune
from prunekit.blockwise import BlockwisePruning, memory_needed, prune_blocks, without_values
from prunekit.blockwise.block_network import BlockNetwork, causal_model
from prunekit.blockwise.shards import Shards, write_shard
from prunekit.blockwise.text_activations import StreamFile
from prunekit.errors import DataError, InputError
from prunekit.folder_lock import LOCK, only_run
from prunekit.methods import recipe
from prunekit.parts.allocation import PerLayer
from prunekit.parts.granularity import NM
from prunekit.parts.schedule import Linear

transformers = pytest.importorskip("transformers")

VOCABULARY = 50
COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCABULARY}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, intermediate_size=64, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=64
    ),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=VOCABULARY),
    "qwen2, tied": lambda: transformers.Qwen2Config(
        **COMMON, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "mixtral, more experts than blocks": lambda: transformers.MixtralConfig(
        **COMMON, intermediate_size=16, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "gemma3, windows": lambda: transformers.Gemma3TextConfig(
        **COMMON, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=8
    ),
}


def saved(folder, name="llama", **changes):
    """A network with random values, and its files in several shards."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), **changes).eval()
    model.save_pretrained(folder, max_shard_size="40KB")
    return model


def tokens():
    return torch.randint(0, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(1))


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").eval()


def whole(model, chosen):
    """The same recipe on the whole network."""
    ids = tokens()
    lists = [name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    mine = chosen.model_copy(update={"targets": (f"{lists[0]}.*",), "calibration": len(ids)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune(model, mine, [{"input_ids": row[None], "labels": row[None]} for row in ids])
    return model


def check_same(expected, folder):
    """The files of a folder hold these values bit for bit."""
    expected, found = expected.state_dict(), loaded(folder).state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("method", "inputs"), [("wanda", "dense"), ("sparsegpt", "pruned")])
def test_the_result_is_that_of_the_whole_network(tmp_path, name, method, inputs):
    model = saved(tmp_path / "in", name)
    chosen = recipe(method, sparsity=0.5)
    reports = []
    kept = prune_blocks(
        tmp_path / "in",
        chosen,
        tokens(),
        tmp_path / "out",
        inputs=inputs,
        report=lambda *a: reports.append(a),
    )
    check_same(whole(model, chosen), tmp_path / "out")
    assert [each.sparsity for each in kept] == pytest.approx([0.5] * 3)
    assert reports == [(0, 3), (1, 3), (2, 3), (3, 3)]
    left = {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")}
    assert left == set()


def of_methods():
    """Recipes beside those above, each with what its statistics are taken behind on the whole network."""
    pattern = {"granularity": NM(n=2, m=4)}
    exact = recipe("exact_layer_obs", sparsity=0.5)
    return {
        "ria": (recipe("ria", sparsity=0.5), "dense"),
        "alps": (recipe("alps", sparsity=0.5), "pruned"),
        "exact OBS": (exact.model_copy(update={"allocation": PerLayer()}), "dense"),
        "exact OBS in turn": (
            exact.model_copy(update={"allocation": PerLayer(), "order": "forward"}),
            "pruned",
        ),
        "OWL": (recipe("owl_wanda", sparsity=0.5), "dense"),
        "2:4 by wanda": (recipe("wanda", sparsity=0.5).model_copy(update=pattern), "dense"),
        "2:4 by sparsegpt": (recipe("sparsegpt", sparsity=0.5).model_copy(update=pattern), "pruned"),
        "2:4 by alps": (recipe("alps", sparsity=0.5).model_copy(update=pattern), "pruned"),
    }


@pytest.mark.parametrize("name", of_methods())
def test_every_method_gives_the_whole_network_and_goes_on_to_the_same_files(tmp_path, monkeypatch, name):
    chosen, inputs = of_methods()[name]
    model = saved(tmp_path / "in")
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", inputs=inputs)
    check_same(whole(model, chosen), tmp_path / "out")
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice", inputs=inputs)
    monkeypatch.undo()
    # activations may be elsewhere than before: what comes out is the same
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice", inputs=inputs, activations="disk")
    check_same_files(tmp_path / "out", tmp_path / "twice")
    if name.startswith("2:4"):
        for layer in loaded(tmp_path / "out").model.layers:
            assert torch.all((layer.mlp.up_proj.weight.unflatten(1, (-1, 4)) != 0).sum(2) == 2)


@pytest.mark.parametrize("after", [1, 4])
def test_layers_that_are_compared_are_measured_once(tmp_path, monkeypatch, after):
    """Of three blocks, stopped behind the first that is measured, and behind the first that is pruned."""
    saved(tmp_path / "in")
    chosen, told = recipe("owl_wanda", sparsity=0.6), []
    prune_blocks(
        tmp_path / "in", chosen, tokens(), tmp_path / "once", report=lambda *given: told.append(given)
    )
    assert told == [(done, 6) for done in range(7)]
    told.clear()

    def stopping(done, count):
        told.append(done)
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice", report=stopping)
    assert told == list(range(after + 1))
    kept = prune_blocks(
        tmp_path / "in", chosen, tokens(), tmp_path / "twice", report=lambda done, count: told.append(done)
    )
    assert told[after + 1 :] == list(range(after, 7))
    check_same_files(tmp_path / "once", tmp_path / "twice")
    removed = [block.total[name] - block.kept[name] for block in kept for name in block.kept]
    total = sum(sum(block.total.values()) for block in kept)
    assert sum(removed) == round(0.6 * total)
    assert len({round(block.sparsity, 3) for block in kept}) > 1


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_activations_on_disk_are_in_memory_one_sequence_at_a_time(tmp_path, monkeypatch, inputs):
    model = saved(tmp_path / "in")
    chosen, alive = recipe("wanda", sparsity=0.5), []
    really = StreamFile.__getitem__

    def counted(self, place):
        found = really(self, place)
        alive.append(weakref.ref(found))
        most.append(sum(each() is not None for each in alive))
        return found

    most = []
    monkeypatch.setattr(StreamFile, "__getitem__", counted)
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", inputs=inputs, activations="disk")
    assert len(alive) > 3 * len(tokens())
    assert max(most) <= 2  # that which is looked at, and the next
    monkeypatch.undo()
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "memory", inputs=inputs)
    check_same_files(tmp_path / "out", tmp_path / "memory")
    if inputs == "dense":
        check_same(whole(model, chosen), tmp_path / "out")


@pytest.mark.parametrize("activations", ["memory", "disk"])
def test_a_run_that_was_killed_in_its_first_block_leaves_a_folder_to_begin_again_in(
    tmp_path, monkeypatch, activations
):
    saved(tmp_path / "in")
    given = (tmp_path / "in", recipe("wanda", sparsity=0.5), tokens())
    prune_blocks(*given, tmp_path / "once")
    stop_at(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        prune_blocks(*given, tmp_path / "twice", activations=activations)
    monkeypatch.undo()
    if activations == "disk":
        (tmp_path / "twice" / "..stream-1.npy.half").touch()  # what a kill leaves of a file that is written
    prune_blocks(*given, tmp_path / "twice", activations=activations)
    check_same_files(tmp_path / "once", tmp_path / "twice")


def test_activations_that_were_changed_in_between_are_refused(tmp_path, monkeypatch):
    saved(tmp_path / "in")
    given = (tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    stop_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        prune_blocks(*given)
    monkeypatch.undo()
    path = tmp_path / "out" / ".stream-1.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for change in (lambda: None, path.unlink):
        change()
        with pytest.raises(DataError, match=r"\.stream-1\.npy is missing or damaged"):
            prune_blocks(*given)


def stop_at(monkeypatch, call):
    """End the run where it prunes a block for this time, the first being 0."""
    really, calls = block_run.prune, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > call:
            raise KeyboardInterrupt
        return really(*args, **kwargs)

    monkeypatch.setattr(block_run, "prune", interrupted)


@pytest.mark.parametrize("method", ["wanda", "owl_wanda"])
@pytest.mark.parametrize(
    "patterns",
    [
        {"targets": ("model.layers.*.mlp.*",)},
        {"ignore": ("model.layers.0.*", "lm_head")},
        {"ignore": ("model.layers.1.mlp.down_proj", "lm_head")},
        {"targets": (r"re:model\.layers\.[12]\..*proj",), "ignore": ("*.q_proj",)},
        {"targets": ("Linear", "Embedding"), "ignore": ("lm_head", "model.embed_tokens")},
    ],
)
def test_patterns_are_of_names_in_the_whole_network(tmp_path, method, patterns):
    model = saved(tmp_path / "in")
    chosen = recipe(method, sparsity=0.5).model_copy(update=patterns)
    kept = prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", inputs="dense")
    ids = tokens()
    prune(
        model,
        chosen.model_copy(update={"calibration": len(ids)}),
        [{"input_ids": row[None], "labels": row[None]} for row in ids],
    )
    check_same(model, tmp_path / "out")
    first = "model.layers.0.*" in chosen.ignore or "[12]" in str(chosen.targets)
    assert (kept[0].kept == {}) == (kept[0].sparsity == 0) == first
    assert prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", inputs="dense") == kept


@pytest.mark.parametrize(
    ("method", "patterns", "match"),
    [
        ("wanda", {"ignore": ("model.layers.3.*",)}, r"'model\.layers\.3\.\*' matches no layer of the model"),
        ("wanda", {"targets": ("lm_head",)}, r"they choose nothing in the blocks model\.layers"),
        ("minitron", {"ignore": ("model.layers.1.*",)}, r"nothing in model\.layers\.1, and .* one width"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(tmp_path, method, patterns, match):
    saved(tmp_path / "in")
    chosen = recipe(method, sparsity=0.5).model_copy(update=patterns)
    with pytest.raises(InputError, match=match):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_links_as_in_the_cache_of_a_hub_is_one(tmp_path):
    saved(tmp_path / "in")
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "in").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    given = recipe("wanda", sparsity=0.5), tokens()
    prune_blocks(tmp_path / "in", *given, tmp_path / "out")
    prune_blocks(tmp_path / "links", *given, tmp_path / "other")
    assert (tmp_path / "other" / "config.json").is_file()
    assert not (tmp_path / "other" / "config.json").is_symlink()
    check_same_files(tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize("method", ["wanda", "llm_pruner"])
def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path, method):
    saved(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    for name in (
        *(".model-block-00001.safetensors.half", ".model-rest-00000.safetensors.half", ".pruning.json.half"),
        *("..gradient-2.npy.half", ".git"),
    ):
        (out / name).touch()
    prune_blocks(tmp_path / "in", recipe(method, sparsity=0.5), tokens(), out)
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left - {"..gradient-2.npy.half"} == {".git"}
    assert method == "wanda" or left == {".git"}


def test_a_second_run_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    saved(tmp_path / "in")
    given = (tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    with only_run(tmp_path / "out"):
        with pytest.raises(InputError, match=rf"another run is at work in .*out \(process {os.getpid()}\)"):
            prune_blocks(*given)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]

    @contextmanager
    def late(folder):
        """Another run is done with a block between the look at the folder and its lock."""
        monkeypatch.undo()
        stop_at(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            prune_blocks(*given)
        monkeypatch.undo()
        with only_run(folder):
            yield

    monkeypatch.setattr(pruning, "only_run", late)
    with pytest.raises(InputError, match=r"another run has been at work in .*out in between"):
        prune_blocks(*given)
    prune_blocks(*given)
    prune_blocks(*given[:3], tmp_path / "once")
    check_same_files(tmp_path / "once", tmp_path / "out")


def check_same_files(one, other):
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_files(tmp_path, monkeypatch, after):
    saved(tmp_path / "in")
    chosen = recipe("wanda", sparsity=0.5)
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "once")
    stop_at(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice")
    with pytest.raises(InputError, match="another seed"):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice", seed=1)
    monkeypatch.undo()
    really, calls = block_run.prune, []
    monkeypatch.setattr(block_run, "prune", lambda *a, **k: calls.append(1) or really(*a, **k))
    kept = prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice")
    assert len(calls) == 3 - after
    assert len(kept) == 3
    check_same_files(tmp_path / "once", tmp_path / "twice")
    assert (
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "twice") == kept
    )  # nothing is left to do


def test_only_one_block_has_values_at_a_time(tmp_path, monkeypatch):
    saved(tmp_path / "in")
    seen = []
    really = block_run.prune

    def watched(block, *args, **kwargs):
        seen.append([not any(value.is_meta for value in each.parameters()) for each in network[0].blocks])
        assert all(value.is_meta for value in network[0].model.get_input_embeddings().parameters())
        return really(block, *args, **kwargs)

    network = []
    build = pruning.BlockNetwork
    monkeypatch.setattr(pruning, "BlockNetwork", lambda *a: network.append(build(*a)) or network[0])
    monkeypatch.setattr(block_run, "prune", watched)
    prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    assert seen == [[True, False, False], [False, True, False], [False, False, True]]


def test_nothing_of_a_block_stays_in_memory(tmp_path):
    """Whatever refers to itself is looked for behind each block, and not left to Python's own count."""
    saved(tmp_path / "in")
    held = []

    def count(done, blocks):
        every = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        held.append(sum(each.numel() for each in every if not each.is_meta and not is_lazy(each)))

    gc.collect()
    gc.disable()
    try:
        prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out", report=count)
    finally:
        gc.enable()
    assert len(held) == 4
    assert held[1] == held[2]


def test_half_precision_stays_half_precision(tmp_path):
    model = saved(tmp_path / "in", torch_dtype=torch.bfloat16)
    prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    found = loaded(tmp_path / "out")
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    before, after = model.state_dict(), found.state_dict()
    for key, value in after.items():
        assert torch.equal(value, torch.where(value == 0, value, before[key])), key  # Wanda moves no weight


def test_the_outputs_are_those_of_the_whole_network(tmp_path):
    model = saved(tmp_path / "in", "qwen2, tied")
    network = BlockNetwork(causal_model(tmp_path / "in"), Shards.of(tmp_path / "in"))
    ids = tokens()
    _, calls = network.calls(ids[:1])
    streams = list(network.streams(ids))
    for number, call in enumerate(calls):
        network.load(number)
        with torch.no_grad():
            streams = [call.run(network.blocks[number], stream) for stream in streams]
        network.empty(number)
    with torch.no_grad():
        for row, stream in zip(ids, streams, strict=True):
            assert torch.equal(network.outputs(stream, row[None]).logits, model(row[None]).logits)
    assert all(value.is_meta for value in network.model.parameters())


class Own(nn.Module):
    """A network of nobody's package."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, ids):
        x = self.embed(ids) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_network_of_any_class_with_a_named_list_of_blocks(tmp_path):
    torch.manual_seed(0)
    model = Own()
    write_shard(tmp_path / "in" / "model.safetensors", model.state_dict())
    with without_values():
        empty = Own()
    prune_blocks(
        tmp_path / "in",
        recipe("magnitude", sparsity=0.5).model_copy(update={"allocation": recipe("wanda").allocation}),
        tokens(),
        tmp_path / "out",
        model=empty,
        blocks="layers",
    )
    found = Shards.of(tmp_path / "out")
    values = found.read(found.file_of)
    for name, value in model.state_dict().items():
        if name.endswith("0.weight"):
            least = value.abs().flatten().sort().values[32]
            assert torch.equal(values[name], torch.where(value.abs() >= least, value, 0))
        else:
            assert torch.equal(values[name], value)


@pytest.mark.parametrize("at", [(0, 1), (0, 0)])
def test_values_that_blocks_share_are_refused(tmp_path, at):
    with without_values():
        model = Own()
        model.layers[at[1]].append(nn.Linear(8, 8))
    write_shard(tmp_path / "in" / "model.safetensors", Own().state_dict())
    model.layers[at[1]][2] = model.layers[at[0]][0]
    with pytest.raises(
        InputError, match=rf"layers\.{at[1]}\.2\.weight is shared with layers\.{at[0]}\.0\.weight"
    ):
        prune_blocks(
            tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out", model=model, blocks="layers"
        )


def test_too_little_memory_is_refused_with_the_sum(tmp_path):
    saved(tmp_path / "in")
    chosen = recipe("sparsegpt", sparsity=0.5)
    need = memory_needed(tmp_path / "in", chosen, tokens())
    assert need.stream == 2 * 4 * 5 * 12 * 32
    assert need.block == need.copy == 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    stages = r"\d+ kB solving, more than embedding, passing, measuring, differentiating, proving, writing"
    with pytest.raises(
        InputError, match=rf"takes .* \(.* block \+ .* copy \+ .* \+ {stages}\), but .* are allowed"
    ):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", memory=need.total - 1)
    assert not (tmp_path / "out").exists()
    prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", memory=need.total)
    less = memory_needed(tmp_path / "in", chosen, tokens(), activations="disk")
    assert less.stream == 2 * 4 * 12 * 32  # whatever the number of sequences is
    assert need.total - less.total == need.stream - less.stream


def refused(tmp_path, match, method="wanda", **changes):
    given = {"tokens": tokens(), "out": tmp_path / "out", **changes}
    with pytest.raises(InputError, match=match):
        prune_blocks(tmp_path / "in", recipe(method, sparsity=0.5), **given)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path):
    saved(tmp_path / "in")
    refused(tmp_path, "the allocation 'global' compares layers", "magnitude")
    refused(tmp_path, "activations = 'tape': must be 'memory' or 'disk'", activations="tape")
    steps = recipe("owl_wanda").model_copy(update={"schedule": Linear(sparsity=0.5, steps=3)})
    with pytest.raises(InputError, match="the allocation 'owl' compares layers at each of several steps"):
        prune_blocks(tmp_path / "in", steps, tokens(), tmp_path / "out")
    refused(tmp_path, "it removes whole blocks", "shortgpt")
    refused(tmp_path, "it trains", "layer_obs_retrained")
    refused(tmp_path, "inputs = 'both': must be", inputs="both")
    form = r"tokens: must be a tensor of whole numbers \(sequences, length\) of at least 0, "
    refused(tmp_path, rf"{form}int64 or int32, not \[3, 4\] of float32", tokens=torch.rand(3, 4))
    refused(tmp_path, f"{form}not list", tokens=[[1, 2]])
    refused(tmp_path, f"{form}and the smallest is -1", tokens=tokens() - 1 - tokens().min())
    beyond = tokens()
    beyond[3, 2] = VOCABULARY
    refused(tmp_path, f"has not as many token numbers or places: {VOCABULARY} is the largest", tokens=beyond)
    refused(tmp_path, "memory = '1 GB': a whole number", memory="1 GB")
    refused(tmp_path, "model must be a torch.nn.Module, not 'llama'", model="llama")
    with pytest.raises(InputError, match="the recipe must be a Recipe, not 'wanda'"):
        prune_blocks(tmp_path / "in", "wanda", tokens(), tmp_path / "out")
    refused(tmp_path, "blocks = 'model.norm': not a list of modules", blocks="model.norm")
    (tmp_path / "in" / "config.json").unlink()
    refused(tmp_path, "there is no config.json")
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").touch()
    saved(tmp_path / "in")
    with pytest.raises(InputError, match="is not empty and holds no pruning under way"):
        prune_blocks(tmp_path / "in", recipe("wanda"), tokens(), other)


def test_a_text_longer_than_the_network_reads_is_refused(tmp_path):
    saved(tmp_path / "in", "gpt2")
    refused(tmp_path, "places: .* 65 the length", tokens=torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (
            lambda value: value[:-1].contiguous(),
            r"\[63, 32\] of float32, the network has \[64, 32\] of float32",
        ),
        (lambda value: value.to(torch.int8), r"\[64, 32\] of int8, the network has"),
        (lambda value: value.to(torch.float8_e4m3fn), "is of the type F8_E4M3; types are: F64, F32"),
    ],
)
def test_a_tensor_of_the_last_block_that_does_not_fit_is_named_before_the_first_is_pruned(
    tmp_path, wrong, match
):
    saved(tmp_path / "in")
    name = "model.layers.2.mlp.up_proj.weight"
    file = Shards.of(tmp_path / "in").file_of[name]
    values = load_file(tmp_path / "in" / file)
    save_file({**values, name: wrong(values[name])}, tmp_path / "in" / file, {"format": "pt"})
    with pytest.raises(DataError, match=rf"{file}: {name} is .*{match}|{file}: {name} {match}"):
        prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_double_precision_beside_another_is_refused(tmp_path):
    model = saved(tmp_path / "in").double()
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "double")
    model.model.layers[1].mlp.float()
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    with pytest.raises(DataError, match=r"is in double precision, and model\.layers\.1\.mlp.* is not"):
        prune_blocks(tmp_path / "in", recipe("wanda", sparsity=0.5), tokens(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_no_network_can_be_made_of_is_named(tmp_path):
    saved(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": "32"}))
    refused(tmp_path, r"config\.json: ")


def test_a_run_does_not_go_on_with_another_training_of_the_same_network(tmp_path):
    class StopError(Exception):
        pass

    def stop(done, count):
        if done == 1:
            raise StopError

    model, chosen = saved(tmp_path / "in"), recipe("wanda", sparsity=0.5)
    with pytest.raises(StopError):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out", report=stop)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)  # files as large as before
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    with pytest.raises(InputError, match="holds a pruning with another source"):
        prune_blocks(tmp_path / "in", chosen, tokens(), tmp_path / "out")


def test_damaged_files_are_named(tmp_path):
    saved(tmp_path / "in")
    index = tmp_path / "in" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for wrong, match in [
        ({"weight_map": []}, "is damaged"),
        ({"weight_map": {**good["weight_map"], "x": "../../secret"}}, "there is no file"),
    ]:
        index.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=match):
            prune_blocks(tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out")
    missing = copy.deepcopy(good)
    del missing["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    index.write_text(json.dumps(missing))
    with pytest.raises(DataError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is in none of its files"):
        prune_blocks(tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out")
    index.write_text(json.dumps(good))
    first = tmp_path / "in" / sorted(set(good["weight_map"].values()))[0]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        prune_blocks(tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_memory_that_is_worked_out_counts_what_a_recipe_and_the_files_need(tmp_path):
    """By hand, for a Llama of width 32 with 2 of 4 heads for keys and values, and 64 units in between."""
    values = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    passing = 4 * 12 * (4 * 64 + 4 * 32 + 12)
    rows = 5 * 12  # of all sequences, which wait in front of the sums of each of seven layers
    for dtype, item in ((torch.float32, 4), (torch.bfloat16, 2)):
        folder = tmp_path / str(item)
        saved(folder, torch_dtype=dtype)
        halved = item * values if item == 2 else 0
        plain = memory_needed(folder, recipe("wanda", sparsity=0.5), tokens())
        assert (plain.block, plain.copy, plain.masks) == (4 * values, 0, 2 * values)
        assert (plain.stream, plain.passing) == (2 * 4 * 5 * 12 * 32, passing)
        assert plain.embedding == (4 + item % 4) * VOCABULARY * 32 + passing
        assert plain.measuring == passing + 4 * rows * (6 * 32 + 64) + 2 * 4 * rows * 64
        assert plain.solving == (4 + 4 * 8) * 32 * 64
        assert (plain.proving, plain.writing) == (0, halved)
        always = plain.block + plain.masks + plain.stream
        assert plain.total == always + max(plain.embedding, plain.measuring, plain.solving)

        # one layer after the other: the widest inputs are those of the last one
        solved = memory_needed(folder, recipe("sparsegpt", sparsity=0.5), tokens())
        assert solved.copy == 4 * values
        assert solved.measuring == passing + 4 * rows * 64 + 8 * 64**2 + 3 * 8 * 64**2
        assert solved.solving == 8 * 64**2 + 8 * (5 * 64**2 + 2 * 32 * 64)
        all_at_once = recipe("sparsegpt", sparsity=0.5).model_copy(update={"order": "all"})
        together = memory_needed(folder, all_at_once, tokens())
        squares = 8 * (6 * 32**2 + 64**2)
        assert together.solving - solved.solving == squares - 8 * 64**2
        assert together.measuring == passing + 4 * rows * (6 * 32 + 64) + 2 * squares + 2 * 8 * 64**2


def test_layers_whose_weights_are_turned_around_have_the_inputs_that_they_have(tmp_path):
    """GPT-2 has (inputs, outputs): 128 inputs are those of the last layer alone."""
    saved(tmp_path / "in", "gpt2")
    need = memory_needed(tmp_path / "in", recipe("sparsegpt", sparsity=0.5), tokens())
    assert need.solving == 8 * 128**2 + 8 * (5 * 128**2 + 2 * 32 * 128)


def test_an_opened_pruning_says_its_need_and_runs_once(tmp_path):
    saved(tmp_path / "in")
    given = tmp_path / "in", recipe("wanda", sparsity=0.5), tokens()
    opened = BlockwisePruning(*given)
    assert opened.memory == memory_needed(*given)
    with pytest.raises(InputError, match="memory"):
        opened.run(tmp_path / "out", memory=opened.memory.total - 1)
    kept = opened.run(tmp_path / "out")
    assert kept == prune_blocks(*given, tmp_path / "again")
    check_same_files(tmp_path / "out", tmp_path / "again")
    with pytest.raises(InputError, match="this pruning has begun"):
        opened.run(tmp_path / "twice")


def test_a_folder_that_is_none_is_named(tmp_path):
    saved(tmp_path / "in")
    given = recipe("wanda", sparsity=0.5), tokens()
    with pytest.raises(InputError, match="out = None: a path is needed"):
        prune_blocks(tmp_path / "in", *given, None)
    with pytest.raises(InputError, match="source = None: a path is needed"):
        prune_blocks(None, *given, tmp_path / "out")

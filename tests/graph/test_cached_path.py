"""Language models that generate with a cache: that way is part of the proof."""

import copy

import pytest
import torch

from prunekit.graph import GraphModel, VerificationError, captured, groups, proof, prune_groups
from prunekit.graph.cached_path import with_cache
from prunekit.graph.surgery import Cut

transformers = pytest.importorskip("transformers")

WORDS = {"input_ids": torch.arange(12).reshape(2, 6) % 30}


def llama(**options):
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        use_cache=False,
        **options,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_the_last_word_gives_what_it_gives_without_a_cache():
    model = llama()
    found = with_cache(model, ((), WORDS))
    torch.testing.assert_close(found, model(**WORDS).logits[:, -1:])


def default(name):
    """Networks of the library with their own settings, which ask for a cache, but small."""
    few = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    both = {**few, "num_key_value_heads": 2, "intermediate_size": 24}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**both)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**both)),
        "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**both, **ends)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=4, n_positions=32, **ends)
        ),
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(**few, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32)
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, **ends
            )
        ),
        "whisper": lambda: transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8,
                max_source_positions=16, max_target_positions=32, **ends,
            )
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    return made[name]().eval()


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "opt", "t5", "whisper"])
def test_networks_that_keep_a_cache_by_default_lose_their_units(name):
    model, words = default(name), WORDS["input_ids"]
    given = {"input_features": torch.randn(2, 8, 32)} if name == "whisper" else dict(WORDS)
    inputs = {**given, "decoder_input_ids": words} if name in ("t5", "whisper") else given
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules", result.reason
    kinds = {group.name: group.kind for group in groups(default(name), inputs).groups}
    lost = {kinds[group.name] for group in result.lost}
    assert "MLP width" in lost
    assert lost & {"heads", "head width"}  # of Phi-3's heads the number stands in its code
    assert model.config.use_cache
    found = model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=True)
    assert torch.equal(found, model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=False))


def test_what_has_no_such_way():
    assert with_cache(torch.nn.Linear(3, 2), ((torch.randn(2, 3),), {})) is None
    assert with_cache(llama(), ((), {"input_ids": WORDS["input_ids"][:, :1]})) is None
    assert with_cache(llama(), ((), {"inputs_embeds": torch.randn(2, 6, 16)})) is None


def test_the_smaller_model_generates_what_the_masked_one_does():
    torch.manual_seed(0)
    model = llama()
    result = prune_groups(model, WORDS, 0.5, kinds=["MLP width", "heads"])
    assert result.form == "modules"
    plain = result.model(**WORDS).logits[:, -1:]
    torch.testing.assert_close(with_cache(result.model, ((), WORDS)), plain)
    words = result.model.generate(**WORDS, max_new_tokens=3, do_sample=False, use_cache=True)
    again = result.model.generate(**WORDS, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(words, again)


@pytest.mark.parametrize("how", ["another number", "an error"])
def test_a_cache_that_does_not_fit_is_found(how):
    model = llama()
    other = copy.deepcopy(model)
    whole = type(model).forward

    def forward(self, input_ids=None, past_key_values=None, **named):
        found = whole(self, input_ids=input_ids, past_key_values=past_key_values, **named)
        if past_key_values is not None and how == "an error":
            raise ValueError("sizes of the cache")
        if past_key_values is not None:
            found.logits = found.logits * 2
        return found

    other.__class__ = type("Other", (type(model),), {"forward": forward})
    reference = proof.masked_reference(model, {}, WORDS)
    message = "sizes of the cache" if how == "an error" else "something else .* with a cache"
    with pytest.raises(VerificationError, match=message):
        proof.proven(reference, other, Cut({}, {}), WORDS, training=False)


def test_a_graph_has_no_such_way_and_is_proven_without():
    model = llama()
    reference = proof.masked_reference(model, {}, WORDS)
    graph = GraphModel(copy.deepcopy(model), captured(model, WORDS))
    assert with_cache(graph, ((), WORDS)) is None
    assert proof.proven(reference, graph, Cut({}, {}), WORDS).accepted

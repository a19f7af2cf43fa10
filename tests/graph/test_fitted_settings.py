"""Networks of transformers whose configuration says the new sizes, read by from_pretrained."""

import copy

import pytest
import torch
from test_cached_path import WORDS, default

from prunekit.graph import fitted_settings, prune_groups

transformers = pytest.importorskip("transformers")


def inputs_of(name):
    words = WORDS["input_ids"]
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": words}
    return {**WORDS, "decoder_input_ids": words} if name == "t5" else dict(WORDS)


@pytest.mark.parametrize(
    ("name", "kinds", "settings"),
    [
        ("llama", ["heads", "MLP width"], {"num_attention_heads": 2, "num_key_value_heads": 1}),
        ("qwen2", ["heads", "MLP width"], {"intermediate_size": 12, "num_attention_heads": 2}),
        ("gpt2", ["MLP width"], {"n_inner": 32}),
        ("opt", ["MLP width"], {"ffn_dim": 12}),
        ("t5", None, {"d_ff": 12, "num_heads": 2, "d_kv": 2}),
        ("phi3", ["MLP width"], {"intermediate_size": 12}),
        ("whisper", ["MLP width"], {"encoder_ffn_dim": 12, "decoder_ffn_dim": 12}),
    ],
)
def test_the_library_reads_what_it_has_written(name, kinds, settings, tmp_path):
    model, inputs = default(name), inputs_of(name)
    given = copy.deepcopy(model.config)
    result = prune_groups(model, inputs, 0.5, kinds=kinds)
    assert result.configuration == ""
    for setting, value in settings.items():
        assert getattr(model.config, setting) == value, setting
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.config.use_cache
    assert given.to_dict() != again.config.to_dict()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("opt", "no setting of OPTForCausalLM's configuration gives model.decoder.layers.0"),
        ("llama", "LlamaForCausalLM would make model.rotary_emb.inv_freq anew"),
    ],
)
def test_where_the_configuration_cannot_say_it_the_result_does(name, why):
    model, inputs = default(name), inputs_of(name)
    before = model.config.to_dict()
    result = prune_groups(model, inputs, 0.5)
    assert why in result.configuration
    assert "from_pretrained cannot build it" in str(result)
    assert model.config.to_dict() == before


def test_frequencies_that_a_class_computes_anew_are_no_setting():
    """Gemma 2 has a setting for its temperature: but for rotations, any width of heads could be set."""
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Gemma2Config(
        **sizes, head_dim=8, query_pre_attn_scalar=8, num_hidden_layers=1, vocab_size=30
    )
    model = transformers.Gemma2ForCausalLM(config).eval()
    frequencies = model.model.rotary_emb.inv_freq.clone()
    result = prune_groups(model, WORDS, 0.5, kinds=["head width"])
    assert result.form == "modules"
    assert "Gemma2ForCausalLM would make model.rotary_emb.inv_freq anew" in result.configuration
    assert set(model.model.rotary_emb.inv_freq.tolist()) < set(frequencies.tolist())
    assert model.config.head_dim == 8


def test_a_layer_that_no_setting_counts_is_named_after_few_networks(monkeypatch):
    built, count = fitted_settings.built_anew, []
    monkeypatch.setattr(fitted_settings, "built_anew", lambda *given: count.append(1) or built(*given))
    config = transformers.DistilBertConfig(vocab_size=30, dim=16, n_heads=4, hidden_dim=24, n_layers=1)
    model = transformers.DistilBertForSequenceClassification(config).eval()
    result = prune_groups(model, WORDS, 0.5, kinds=["MLP width"])
    assert "gives pre_classifier.weight the shape (8, 16)" in result.configuration
    assert len(count) < 40


def test_the_configuration_that_was_given_stays_what_it_is():
    model = default("llama")
    config = model.config
    before = config.to_dict()
    prune_groups(model, WORDS, 0.5, kinds=["MLP width"])
    assert config.to_dict() == before
    assert model.config.intermediate_size == model.model.config.intermediate_size == 12

"""Translators that are given labels alone: the decoder reads what the network makes of them itself."""

import pytest
import torch
import transformers

from prunekit import Recipe, Task, prune
from prunekit.batches import feed

T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16},
}
WHISPER = BART | {"num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 12}
TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4}


def network(kind, sizes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=30, **sizes)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def examples(kind):
    labels = torch.randint(5, 30, (4, 6))
    labels[0, 4:] = -100
    if kind == "Whisper":
        return {"input_features": torch.randn(4, 4, 16), "labels": labels}
    return {"input_ids": torch.randint(5, 30, (4, 5)), "labels": labels}


@pytest.mark.parametrize(("kind", "sizes"), [("T5", T5), ("Bart", BART), ("Whisper", WHISPER | TOKENS)])
def test_outputs_are_those_that_the_network_gives_with_labels(kind, sizes):
    model, batch, task = network(kind, sizes), examples(kind), Task()
    read = task.read(batch, model)
    expected = model(**batch)
    torch.testing.assert_close(feed(model, read.inputs).logits, expected.logits, rtol=0, atol=0)
    outputs = task.run(model, read)
    torch.testing.assert_close(task.loss(outputs, read.targets), expected.loss, rtol=0, atol=0)


def test_what_the_decoder_reads_is_left_alone_where_it_is_given():
    model, batch = network("T5", T5), examples("T5")
    words = torch.full((4, 6), 7)
    read = Task().read(batch | {"decoder_input_ids": words}, model)
    assert read.inputs["decoder_input_ids"] is words


def test_a_network_that_cannot_say_where_its_words_begin_is_given_nothing():
    read = Task().read(examples("T5"), network("T5", T5 | {"decoder_start_token_id": None}))
    assert set(read.inputs) == {"input_ids"}


def test_a_translator_is_pruned_on_sources_and_labels_alone():
    model, batch = network("T5", T5), examples("T5")
    recipe = Recipe(
        score="feature_taylor",
        granularity={"name": "unit", "kinds": ["MLP width"]},
        allocation="per_layer",
        schedule={"name": "one_shot", "sparsity": 0.5},
    )
    pruned = prune(model, recipe, batch)
    pruned.shrink(batch)
    assert pruned.model.decoder.block[0].layer[2].DenseReluDense.wi.out_features == 12
    assert pruned.model.encoder.block[0].layer[1].DenseReluDense.wi.out_features == 12

"""Networks of the package transformers with random weights of tiny configurations."""

from __future__ import annotations

import torch

TEXT = {"input_ids": torch.arange(12).reshape(2, 6) % 30}
SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 32, "use_cache": False}
IMAGE = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def of(kind, **config):
    """What makes a model of that class with these settings of its configuration."""

    def make():
        import transformers

        model = getattr(transformers, kind)
        return model(model.config_class(**config))

    return make


TRANSFORMERS = {
    "hf-bert": (of("BertForSequenceClassification", **SMALL, intermediate_size=24), TEXT),
    "hf-distilbert": (
        of(
            "DistilBertForSequenceClassification",
            vocab_size=30, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=32,
        ),
        TEXT,
    ),
    "hf-gpt2": (
        of(
            "GPT2LMHeadModel",
            vocab_size=30, n_embd=16, n_layer=2, n_head=4, n_positions=32, use_cache=False,
        ),
        TEXT,
    ),
    "hf-opt": (
        of(
            "OPTForCausalLM", **SMALL,
            ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, use_cache=False,
        ),
        TEXT,
    ),
    "hf-llama": (of("LlamaForCausalLM", **SMALL, **GATED), TEXT),
    "hf-llama-tied": (
        of("LlamaForCausalLM", **SMALL, **GATED, tie_word_embeddings=True), TEXT
    ),
    "hf-mistral": (of("MistralForCausalLM", **SMALL, **GATED, sliding_window=4), TEXT),
    "hf-qwen2": (of("Qwen2ForCausalLM", **SMALL, **GATED), TEXT),
    "hf-t5": (
        of(
            "T5ForConditionalGeneration",
            vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, use_cache=False,
        ),
        {**TEXT, "decoder_input_ids": TEXT["input_ids"][:, :4].contiguous()},
    ),
    "hf-vit": (
        of(
            "ViTForImageClassification",
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
            image_size=16, patch_size=4,
        ),
        IMAGE,
    ),
    "hf-swin": (
        of(
            "SwinForImageClassification",
            image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=2,
            drop_path_rate=0.0,
        ),
        IMAGE,
    ),
    "hf-convnext": (
        of(
            "ConvNextForImageClassification",
            hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4,
        ),
        IMAGE,
    ),
    "hf-resnet": (
        of(
            "ResNetForImageClassification",
            embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1], layer_type="bottleneck",
        ),
        {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
    ),
}  # fmt: skip

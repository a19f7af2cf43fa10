"""Language models of the package transformers, tiny and with random weights."""

from __future__ import annotations

import torch
from zoo_transformers import SMALL, TEXT, of

WIDE = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 32}
GATED = {**WIDE, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
BOTH = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}
PAIR = {**TEXT, "decoder_input_ids": torch.arange(8).reshape(2, 4) % 30}
LONG = {"input_ids": torch.arange(32).reshape(2, 16) % 30}
MOE = {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}
NARROW = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}

ENCODERS = {
    "hf-albert": of("AlbertForSequenceClassification", **WIDE, embedding_size=8),
    "hf-roberta": of("RobertaForSequenceClassification", **{**WIDE, "max_position_embeddings": 64}),
    "hf-camembert": of("CamembertForMaskedLM", **{**WIDE, "max_position_embeddings": 64}),
    "hf-electra": of("ElectraForSequenceClassification", **WIDE, embedding_size=8),
    "hf-deberta": of("DebertaForSequenceClassification", **WIDE, relative_attention=True,
        pos_att_type=["c2p", "p2c"]),
    "hf-deberta-v2": of("DebertaV2ForSequenceClassification", **WIDE, relative_attention=True,
        pos_att_type=["c2p", "p2c"], position_buckets=8),
    "hf-ernie": of("ErnieForSequenceClassification", **WIDE),
    "hf-esm": of("EsmForMaskedLM", **WIDE, pad_token_id=1, position_embedding_type="rotary"),
    "hf-fnet": of("FNetForSequenceClassification", vocab_size=30, hidden_size=16, num_hidden_layers=2,
        intermediate_size=24, max_position_embeddings=32),
    "hf-ibert": of("IBertForSequenceClassification", **{**WIDE, "max_position_embeddings": 64}),
    "hf-layoutlm": of("LayoutLMForSequenceClassification", **WIDE, max_2d_position_embeddings=16),
    "hf-longformer": of("LongformerForSequenceClassification", **{**WIDE, "max_position_embeddings": 64},
        attention_window=4),
    "hf-mobilebert": of("MobileBertForSequenceClassification", **WIDE, embedding_size=8,
        intra_bottleneck_size=8, num_feedforward_networks=2),
    "hf-modernbert": of("ModernBertForSequenceClassification", **WIDE, pad_token_id=0,
        reference_compile=False, cls_token_id=1, sep_token_id=2),
    "hf-mpnet": of("MPNetForSequenceClassification", **WIDE),
    "hf-nystromformer": of("NystromformerForSequenceClassification", **WIDE, num_landmarks=3,
        segment_means_seq_len=6),
    "hf-rembert": of("RemBertForSequenceClassification", **WIDE, input_embedding_size=8,
        output_embedding_size=12),
    "hf-roc-bert": of("RoCBertForSequenceClassification", **WIDE, pronunciation_vocab_size=30,
        shape_vocab_size=30, pronunciation_embed_dim=8, shape_embed_dim=8),
    "hf-roformer": of("RoFormerForSequenceClassification", **WIDE, embedding_size=8),
    "hf-squeezebert": of("SqueezeBertForSequenceClassification", **WIDE, embedding_size=16, q_groups=2,
        k_groups=2, v_groups=2, post_attention_groups=1, intermediate_groups=2, output_groups=2),
    "hf-convbert": of("ConvBertForSequenceClassification", **WIDE, embedding_size=8, head_ratio=2,
        conv_kernel_size=3),
    "hf-canine": of("CanineForSequenceClassification", hidden_size=16, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=24, max_position_embeddings=64, downsampling_rate=2,
        num_hash_buckets=32, local_transformer_stride=4),
    "hf-funnel": of("FunnelForSequenceClassification", vocab_size=30, block_sizes=[1, 1],
        num_decoder_layers=1, d_model=16, n_head=4, d_head=4, d_inner=24),
    "hf-xlm": of("XLMForSequenceClassification", vocab_size=30, emb_dim=16, n_layers=2, n_heads=4,
        max_position_embeddings=32),
    "hf-xlnet": of("XLNetForSequenceClassification", vocab_size=30, d_model=16, n_layer=2, n_head=4,
        d_inner=24),
    "hf-xmod": of("XmodForSequenceClassification", **{**WIDE, "max_position_embeddings": 64},
        default_language="en_XX", adapter_reduction_factor=2),
    "hf-megatron-bert": of("MegatronBertForSequenceClassification", **WIDE),
    "hf-big-bird": of("BigBirdForSequenceClassification", **WIDE, attention_type="original_full"),
}  # fmt: skip

DECODERS = {
    "hf-gpt-neo": of("GPTNeoForCausalLM", vocab_size=30, hidden_size=16, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=32, window_size=4,
        use_cache=False),
    "hf-gpt-neox": of("GPTNeoXForCausalLM", **WIDE, rotary_pct=0.5, use_cache=False),
    "hf-gptj": of("GPTJForCausalLM", **NARROW, rotary_dim=2),
    "hf-gpt-bigcode": of("GPTBigCodeForCausalLM", **NARROW),
    "hf-openai-gpt": of("OpenAIGPTLMHeadModel", vocab_size=30, n_embd=16, n_layer=2, n_head=4,
        n_positions=32),
    "hf-bloom": of("BloomForCausalLM", vocab_size=30, hidden_size=16, n_layer=2, n_head=4, use_cache=False),
    "hf-falcon": of("FalconForCausalLM", **SMALL, use_cache=False),
    "hf-falcon-grouped": of("FalconForCausalLM", **SMALL, use_cache=False, new_decoder_architecture=True,
        num_kv_heads=2),
    "hf-gemma": of("GemmaForCausalLM", **GATED, head_dim=4),
    "hf-gemma2": of("Gemma2ForCausalLM", **GATED, head_dim=4, sliding_window=4, query_pre_attn_scalar=4),
    "hf-gemma3": of("Gemma3ForCausalLM", **GATED, head_dim=4, sliding_window=4),
    "hf-phi": of("PhiForCausalLM", **GATED, partial_rotary_factor=0.5),
    "hf-phi3": of("Phi3ForCausalLM", **GATED, bos_token_id=1, eos_token_id=2),
    "hf-qwen3": of("Qwen3ForCausalLM", **GATED, head_dim=4),
    "hf-olmo2": of("Olmo2ForCausalLM", **GATED),
    "hf-cohere": of("CohereForCausalLM", **GATED),
    "hf-glm": of("GlmForCausalLM", **GATED, head_dim=4, partial_rotary_factor=0.5),
    "hf-stablelm": of("StableLmForCausalLM", **GATED, partial_rotary_factor=0.5),
    "hf-starcoder2": of("Starcoder2ForCausalLM", **GATED),
    "hf-persimmon": of("PersimmonForCausalLM", **{**WIDE, "use_cache": False}, partial_rotary_factor=0.5,
        qk_layernorm=True),
    "hf-codegen": of("CodeGenForCausalLM", **NARROW, rotary_dim=2),
    "hf-biogpt": of("BioGptForCausalLM", **WIDE, use_cache=False),
    "hf-xglm": of("XGLMForCausalLM", vocab_size=30, d_model=16, num_layers=2, attention_heads=4,
        ffn_dim=24, max_position_embeddings=32, use_cache=False),
    "hf-nemotron": of("NemotronForCausalLM", **GATED, partial_rotary_factor=0.5),
    "hf-granite": of("GraniteForCausalLM", **GATED),
    "hf-smollm3": of("SmolLM3ForCausalLM", **GATED),
    "hf-mixtral": of("MixtralForCausalLM", **MOE),
    "hf-qwen2-moe": of("Qwen2MoeForCausalLM", **GATED, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=12, shared_expert_intermediate_size=20),
    "hf-granite-moe": of("GraniteMoeForCausalLM", **MOE),
    "hf-deepseek-v2": of("DeepseekV2ForCausalLM", **{**GATED, "num_key_value_heads": 4}, kv_lora_rank=8,
        q_lora_rank=None, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, first_k_dense_replace=2),
    "hf-mamba": of("MambaForCausalLM", vocab_size=30, hidden_size=16, num_hidden_layers=2, state_size=4,
        use_cache=False, time_step_rank=4),
    "hf-mamba2": of("Mamba2ForCausalLM", vocab_size=30, hidden_size=16, num_hidden_layers=2, state_size=4,
        num_heads=8, head_dim=4, n_groups=2, chunk_size=4, use_cache=False),
    "hf-rwkv": of("RwkvForCausalLM", vocab_size=30, hidden_size=16, num_hidden_layers=2,
        attention_hidden_size=16, intermediate_size=24, context_length=16, use_cache=False),
    "hf-recurrent-gemma": of("RecurrentGemmaForCausalLM", **{**WIDE, "num_hidden_layers": 3},
        lru_width=16, num_key_value_heads=2, attention_window_size=4, use_cache=False),
    "hf-ctrl": of("CTRLLMHeadModel", vocab_size=30, n_embd=16, dff=24, n_layer=2, n_head=4,
        n_positions=32, use_cache=False),
    "hf-bitnet": of("BitNetForCausalLM", **GATED),
    "hf-diffllama": of("DiffLlamaForCausalLM", **GATED),
    "hf-lfm2": of("Lfm2ForCausalLM", **GATED, full_attn_idxs=[1], layer_types=["conv", "full_attention"]),
}  # fmt: skip

PAIRS = {
    "hf-bart": of("BartForConditionalGeneration", **BOTH),
    "hf-mbart": of("MBartForConditionalGeneration", **BOTH),
    "hf-pegasus": of("PegasusForConditionalGeneration", **BOTH),
    "hf-marian": of("MarianMTModel", **BOTH),
    "hf-blenderbot": of("BlenderbotForConditionalGeneration", **BOTH),
    "hf-m2m": of("M2M100ForConditionalGeneration", **BOTH),
    "hf-plbart": of("PLBartForConditionalGeneration", **BOTH),
    "hf-mt5": of("MT5ForConditionalGeneration", **T5),
    "hf-longt5": of("LongT5ForConditionalGeneration", **T5, local_radius=3),
    "hf-switch": of("SwitchTransformersForConditionalGeneration", **T5, num_experts=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=8),
    "hf-umt5": of("UMT5ForConditionalGeneration", **T5),
    "hf-prophetnet": of("ProphetNetForConditionalGeneration", vocab_size=30, hidden_size=16,
        num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        use_cache=False, pad_token_id=0),
    "hf-led": of("LEDForConditionalGeneration", **{k: v for k,
        v in BOTH.items() if k != "max_position_embeddings"}, max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32, attention_window=4),
}  # fmt: skip

LANGUAGE = {
    **{
        name: (make, LONG if name in {"hf-canine", "hf-longformer"} else TEXT)
        for name, make in ENCODERS.items()
    },
    **{name: (make, TEXT) for name, make in DECODERS.items()},
    **{name: (make, PAIR) for name, make in PAIRS.items()},
}

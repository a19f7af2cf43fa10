"""Vision, speech, series and mixed models of the package transformers, tiny and with random weights."""

from __future__ import annotations

import torch
from zoo_transformers import TEXT, of


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def images(size):
    return {"pixel_values": drawn(2, 3, size, size)}


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
PATCHES = {**VIT, "image_size": 16, "patch_size": 4}
TOWER = {**PATCHES, "projection_dim": 8}
WORDS = {**VIT, "vocab_size": 30, "max_position_embeddings": 32, "projection_dim": 8}
WAVE = {
    **VIT, "vocab_size": 12, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False, "layerdrop": 0.0,
}  # fmt: skip
SPEECH = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "use_cache": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
SOUND = {"input_values": drawn(2, 200)}
MEL = {"input_features": drawn(2, 8, 16), "decoder_input_ids": torch.arange(8).reshape(2, 4) % 30}
TOKENS = {"input_ids": torch.arange(12).reshape(2, 6) % 29 + 1}
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "num_queries": 5,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "use_timm_backbone": False,
    "use_pretrained_backbone": False, "num_labels": 3,
}  # fmt: skip


def two_towers(kind, text=WORDS, vision=TOWER, **more):
    return of(kind, text_config=text, vision_config=vision, projection_dim=8, **more)


def on_resnet(kind, **more):
    """A detector on a small ResNet of the same package."""

    def make():
        import transformers

        body = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage4"] if "num_feature_levels" not in more else ["stage3", "stage4"],
        )  # fmt: skip
        return of(kind, **more, backbone=None, backbone_config=body)()

    return make


VISION = {
    "hf-deit": (of("DeiTForImageClassification", **PATCHES), images(16)),
    "hf-beit": (of("BeitForImageClassification", **PATCHES, use_relative_position_bias=True), images(16)),
    "hf-data2vec-vision": (of("Data2VecVisionForImageClassification", **PATCHES,
        use_shared_relative_position_bias=True), images(16)),
    "hf-dinov2": (of("Dinov2ForImageClassification", **PATCHES), images(16)),
    "hf-dinov2-gated": (of("Dinov2ForImageClassification", **PATCHES, use_swiglu_ffn=True), images(16)),
    "hf-dinov3": (of("DINOv3ViTModel", **PATCHES, num_register_tokens=2), images(16)),
    "hf-vit-msn": (of("ViTMSNForImageClassification", **PATCHES), images(16)),
    "hf-yolos": (of("YolosForObjectDetection", **{**PATCHES, "image_size": [16, 16]},
        num_detection_tokens=4), images(16)),
    "hf-siglip": (of("SiglipForImageClassification", vision_config=PATCHES, text_config=WORDS), images(16)),
    "hf-convnextv2": (of("ConvNextV2ForImageClassification", hidden_sizes=[8, 16], depths=[1, 1],
        num_stages=2, patch_size=4), images(16)),
    "hf-swinv2": (of("Swinv2ForImageClassification", image_size=16, patch_size=2, embed_dim=8, depths=[2,
        1], num_heads=[2, 4], window_size=2, drop_path_rate=0.0), images(16)),
    "hf-segformer": (of("SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1],
        sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[2, 4], mlp_ratios=[2, 2], decoder_hidden_size=16, drop_path_rate=0.0),
        images(16)),
    "hf-mobilevit": (of("MobileViTForImageClassification", image_size=32, hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 12, 16, 16, 24, 32], num_attention_heads=4, expand_ratio=2.0), images(32)),
    "hf-mobilevitv2": (of("MobileViTV2ForImageClassification", image_size=32, width_multiplier=0.125,
        n_attn_blocks=[1, 1, 1], base_attn_unit_dims=[64, 64, 64]), images(64)),
    "hf-mobilenet-v1": (of("MobileNetV1ForImageClassification", image_size=32, depth_multiplier=0.125,
        min_depth=4), images(32)),
    "hf-mobilenet-v2": (of("MobileNetV2ForImageClassification", image_size=32, depth_multiplier=0.125,
        min_depth=4), images(32)),
    "hf-efficientnet": (of("EfficientNetForImageClassification", image_size=32, width_coefficient=0.25,
        depth_coefficient=0.25, hidden_dim=320), images(32)),
    "hf-regnet": (of("RegNetForImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[1,
        1], groups_width=4), images(32)),
    "hf-bit": (of("BitForImageClassification", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1],
        num_groups=4), images(32)),
    "hf-levit": (of("LevitForImageClassification", image_size=64, hidden_sizes=[16, 16, 16],
        num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8], attention_ratio=[2, 2, 2],
        mlp_ratio=[2, 2, 2], drop_path_rate=0), images(64)),
    "hf-poolformer": (of("PoolFormerForImageClassification", hidden_sizes=[8, 16], depths=[1, 1],
        num_encoder_blocks=2, patch_sizes=[3, 3], strides=[2, 2], padding=[1, 1], mlp_ratio=2.0,
        drop_path_rate=0.0), images(16)),
    "hf-pvt-v2": (of("PvtV2ForImageClassification", image_size=16, num_encoder_blocks=2, depths=[1, 1],
        sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[2, 4], mlp_ratios=[2, 2], drop_path_rate=0.0), images(16)),
    "hf-focalnet": (of("FocalNetForImageClassification", image_size=16, patch_size=2, embed_dim=8,
        hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3],
        drop_path_rate=0.0), images(16)),
    "hf-swiftformer": (of("SwiftFormerForImageClassification", depths=[1, 1, 1, 1], embed_dims=[8, 8, 16,
        16], mlp_ratio=2, drop_path_rate=0.0), images(64)),
    "hf-hiera": (of("HieraForImageClassification", image_size=[16, 16], patch_size=[3, 3],
        patch_stride=[2, 2], patch_padding=[1, 1], embed_dim=8, depths=[1, 1], num_heads=[2, 4],
        num_query_pool=1, masked_unit_size=[4, 4], drop_path_rate=0.0), images(16)),
    "hf-glpn": (of("GLPNForDepthEstimation", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 2, 2, 4], sr_ratios=[2, 2, 1, 1], decoder_hidden_size=8,
        drop_path_rate=0.0), images(32)),
    "hf-dpt": (of("DPTForDepthEstimation", **{**PATCHES, "num_hidden_layers": 4}, is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        readout_type="ignore"), images(16)),
    "hf-mae": (of("ViTMAEForPreTraining", **PATCHES, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4, decoder_intermediate_size=24, mask_ratio=0.0), {**images(16),
        "noise": torch.arange(32.0).reshape(2, 16)}),
    "hf-swin2sr": (of("Swin2SRForImageSuperResolution", image_size=8, patch_size=1, embed_dim=16,
        depths=[2], num_heads=[2], window_size=4, mlp_ratio=2.0, upscale=2, drop_path_rate=0.0), images(8)),
    "hf-textnet": (of("TextNetForImageClassification", stem_num_channels=3, stem_out_channels=8,
        hidden_sizes=[8, 8, 16, 16, 16], conv_layer_kernel_sizes=[[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
        conv_layer_strides=[[1], [2], [2], [2]]), images(32)),
    "hf-hgnet": (of("HGNetV2ForImageClassification", stem_channels=[3, 8, 8], hidden_sizes=[16, 16],
        depths=[1, 1], stage_in_channels=[8, 16], stage_mid_channels=[8, 8], stage_out_channels=[16, 16],
        stage_num_blocks=[1, 1], stage_downsample=[False, True], stage_light_block=[False, True],
        stage_kernel_size=[3, 5], stage_numb_of_layers=[2, 2], embedding_size=8), images(32)),
    "hf-videomae": (of("VideoMAEForVideoClassification", **PATCHES, num_frames=2, tubelet_size=2),
        {"pixel_values": drawn(2, 2, 3, 16, 16)}),
    "hf-timesformer": (of("TimesformerForVideoClassification", **PATCHES, num_frames=2,
        drop_path_rate=0.0), {"pixel_values": drawn(2, 2, 3, 16, 16)}),
    "hf-vivit": (of("VivitForVideoClassification", **VIT, image_size=16, num_frames=2, tubelet_size=[2, 4,
        4]), {"pixel_values": drawn(2, 2, 3, 16, 16)}),
    "hf-detr": (on_resnet("DetrForObjectDetection", **DETR), images(32)),
    "hf-conditional-detr": (on_resnet("ConditionalDetrForObjectDetection", **DETR), images(32)),
    "hf-table-transformer": (on_resnet("TableTransformerForObjectDetection", **DETR), images(32)),
    "hf-deformable-detr": (on_resnet("DeformableDetrForObjectDetection", **{**DETR, "d_model": 32},
        num_feature_levels=2, encoder_n_points=2, decoder_n_points=2), images(32)),
    "hf-upernet": (on_resnet("UperNetForSemanticSegmentation", hidden_size=8, pool_scales=[1, 2],
        use_auxiliary_head=False, num_feature_levels=2, num_labels=3), images(32)),
}  # fmt: skip

SPEECH_AND_MORE = {
    "hf-wav2vec2": (of("Wav2Vec2ForCTC", **WAVE), SOUND),
    "hf-wav2vec2-conformer": (of("Wav2Vec2ConformerForCTC", **WAVE, conv_depthwise_kernel_size=3), SOUND),
    "hf-hubert": (of("HubertForCTC", **WAVE), SOUND),
    "hf-wavlm": (of("WavLMForCTC", **WAVE, num_buckets=8, max_bucket_distance=8), SOUND),
    "hf-unispeech": (of("UniSpeechForCTC", **WAVE), SOUND),
    "hf-sew": (of("SEWForCTC", **WAVE, squeeze_factor=2), SOUND),
    "hf-data2vec-audio": (of("Data2VecAudioForCTC", **{**WAVE, "num_conv_pos_embeddings": 2},
        conv_pos_kernel_size=3), SOUND),
    "hf-whisper": (of("WhisperForConditionalGeneration", **SPEECH, num_mel_bins=8, max_source_positions=8,
        max_target_positions=16), MEL),
    "hf-speech-to-text": (of("Speech2TextForConditionalGeneration", **SPEECH, input_feat_per_channel=8,
        input_channels=1, conv_channels=16, max_source_positions=64, max_target_positions=32), {**MEL,
        "input_features": drawn(2, 16, 8)}),
    "hf-moonshine": (of("MoonshineForConditionalGeneration", vocab_size=30, hidden_size=16,
        intermediate_size=24, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4, use_cache=False, pad_token_id=0),
        {"input_values": drawn(2, 1200), "decoder_input_ids": TOKENS["input_ids"][:, :4].contiguous()}),
    "hf-audio-spectrogram": (of("ASTForAudioClassification", **VIT, patch_size=4, frequency_stride=4,
        time_stride=4, max_length=16, num_mel_bins=8), {"input_values": drawn(2, 16, 8)}),
    "hf-dac": (of("DacModel", encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_hidden_size=16,
        n_codebooks=2, codebook_size=8, codebook_dim=4, upsampling_ratios=[2, 2]),
        {"input_values": drawn(2, 1, 64)}),
    "hf-patchtst": (of("PatchTSTForPrediction", num_input_channels=2, context_length=16, patch_length=4,
        patch_stride=4, num_hidden_layers=2, d_model=16, num_attention_heads=4, ffn_dim=24,
        prediction_length=4, loss="mse"), {"past_values": drawn(2, 16, 2)}),
    "hf-patchtsmixer": (of("PatchTSMixerForPrediction", num_input_channels=2, context_length=16,
        patch_length=4, patch_stride=4, d_model=8, num_layers=2, prediction_length=4, loss="mse"),
        {"past_values": drawn(2, 16, 2)}),
    "hf-decision": (of("DecisionTransformerModel", state_dim=5, act_dim=3, hidden_size=16, n_layer=2,
        n_head=4, max_ep_len=16, n_positions=32), {"states": drawn(2, 4, 5), "actions": drawn(2, 4, 3),
        "rewards": drawn(2, 4, 1), "returns_to_go": drawn(2, 4, 1),
        "timesteps": torch.arange(8).reshape(2, 4) % 4, "attention_mask": torch.ones(2, 4)}),
    "hf-perceiver": (of("PerceiverForMaskedLM", num_latents=4, d_latents=16, d_model=16, num_blocks=1,
        num_self_attends_per_block=1, num_self_attention_heads=4, num_cross_attention_heads=4,
        vocab_size=30, max_position_embeddings=6, qk_channels=16, v_channels=16,
        self_attention_widening_factor=2, cross_attention_widening_factor=2),
        {"inputs": TOKENS["input_ids"]}),
    "hf-clip": (two_towers("CLIPModel"), {**TOKENS, **images(16)}),
    "hf-altclip-vision": (of("AltCLIPVisionModel", **TOWER), images(16)),
    "hf-chinese-clip": (two_towers("ChineseCLIPModel"), {**TOKENS, **images(16)}),
    "hf-siglip-both": (of("SiglipModel", vision_config=PATCHES, text_config={**WORDS,
        "projection_size": 16}), {**TOKENS, **images(16)}),
    "hf-vilt": (of("ViltForImagesAndTextClassification", **PATCHES, vocab_size=30,
        max_position_embeddings=32, num_images=1, max_image_length=-1), {**TOKENS,
        "pixel_values": drawn(2, 1, 3, 16, 16)}),
    "hf-blip-text": (of("BlipTextLMHeadModel", **WORDS, encoder_hidden_size=16, pad_token_id=0,
        bos_token_id=1, is_decoder=True, use_cache=False), TEXT),
    "hf-trocr": (of("TrOCRForCausalLM", vocab_size=30, d_model=16, decoder_layers=2,
        decoder_attention_heads=4, decoder_ffn_dim=24, max_position_embeddings=32, use_cache=False), TEXT),
    "hf-visual-bert": (of("VisualBertModel", **{k: v for k, v in WORDS.items() if k != "projection_dim"},
        visual_embedding_dim=8), {**TOKENS, "visual_embeds": drawn(2, 3, 8)}),
}  # fmt: skip

SENSES = {**VISION, **SPEECH_AND_MORE}

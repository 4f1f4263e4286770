"""Depth-estimation models of every architecture with a few thousand random weights, saved as any other model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("depth_anything", "depth_pro", "dpt", "glpn", "prompt_depth_anything", "zoedepth")


def save_model(family: str, folder: Path, **changes: Any) -> Path:
    """Model and image processor of `family`; `changes` go into its config."""
    import torch
    import transformers

    torch.manual_seed(0)
    config, name, processor = _parts(family, changes)
    model = getattr(transformers, f"{name}ForDepthEstimation")(config)
    for parameter in model.parameters():  # weights of their usual first size give almost the same number everywhere
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _parts(family: str, changes: dict[str, Any]) -> tuple[Any, str, Any]:
    import transformers as t

    size = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    dino = {**size, "image_size": 28, "patch_size": 14, "mlp_ratio": 2, "reshape_hidden_states": False}
    stages = [f"stage{i}" for i in range(1, 5)]
    neck: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    if family in ("depth_anything", "prompt_depth_anything"):
        backbone = t.Dinov2Config(**dino, out_features=stages, apply_layernorm=True)
        more = {"reassemble_hidden_size": 16, "patch_size": 14, "head_hidden_size": 8, **neck, **changes}
        square = {"height": 56, "width": 56}
        if family == "depth_anything":
            processor = t.DPTImageProcessor(size=square, keep_aspect_ratio=True, ensure_multiple_of=14)
            return t.DepthAnythingConfig(backbone_config=backbone, **more), "DepthAnything", processor
        prompted = t.PromptDepthAnythingImageProcessor(size=square, keep_aspect_ratio=True, ensure_multiple_of=14)
        return t.PromptDepthAnythingConfig(backbone_config=backbone, **more), "PromptDepthAnything", prompted
    if family == "dpt":
        config = t.DPTConfig(
            **size,
            **neck,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            reassemble_factors=[4, 2, 1, 0.5],
            is_hybrid=False,
            use_auxiliary_head=False,
            **changes,
        )
        return config, "DPT", t.DPTImageProcessor(size={"height": 32, "width": 32})
    if family == "zoedepth":
        beit = t.BeitConfig(
            **size,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            out_features=stages,
            reshape_hidden_states=False,
            use_relative_position_bias=True,
        )
        config = t.ZoeDepthConfig(
            backbone_config=beit,
            **neck,
            backbone_hidden_size=16,
            num_relative_features=8,
            bottleneck_features=8,
            num_attractors=[4, 2, 1, 1],
            bin_embedding_dim=8,
            bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
            **changes,
        )
        return config, "ZoeDepth", t.ZoeDepthImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=32)
    if family == "glpn":
        config = t.GLPNConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, **changes
        )
        return config, "GLPN", t.GLPNImageProcessor(size_divisor=32)
    assert family == "depth_pro"
    encoder = {**{k: v for k, v in dino.items() if k != "reshape_hidden_states"}, "image_size": 16, "patch_size": 8}
    encoder["model_type"] = "dinov2"
    config = t.DepthProConfig(
        patch_size=16,
        fusion_hidden_size=8,
        intermediate_hook_ids=[2, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[8, 8],
        image_model_config=dict(encoder),
        patch_model_config=dict(encoder),
        fov_model_config=dict(encoder),
        **{"use_fov_model": True, "num_fov_head_layers": 0, **changes},
    )
    return config, "DepthPro", t.DepthProImageProcessor(size={"height": 64, "width": 64})


def save_marigold(folder: Path, **changes: Any) -> Path:
    """A MarigoldDepthPipeline of tiny parts; `changes` go into its own config."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    words = folder.parent / f"{folder.name}-words"
    words.mkdir()
    (words / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}')
    (words / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    settings = {"prediction_type": "depth", "default_denoising_steps": 1, "default_processing_resolution": 32}
    MarigoldDepthPipeline(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=8),
        **{**settings, "scale_invariant": True, "shift_invariant": True, **changes},
    ).save_pretrained(folder)
    return folder

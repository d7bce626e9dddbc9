"""Pipelines of videos."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import CLIPTextModel

from ..pipelines import DIM, clip_text_config, clip_tokenizer, quiet, sd_scheduler, unet, vae
from . import texts


def wan(scheduler: Any = None) -> diffusers.WanPipeline:
    torch.manual_seed(0)
    pipe = diffusers.WanPipeline(
        transformer=wan_transformer(),
        vae=wan_vae(),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=texts.umt5(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def wan_transformer() -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan_vae() -> diffusers.AutoencoderKLWan:
    """Eight pixels a side and four frames for each latent."""
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[0.8, 0.9, 1.1, 1.2],
    )
    autoencoder.decoder.conv_out.weight.data *= 4.0  # untrained, its images are grey
    return autoencoder


def ltx() -> diffusers.LTXPipeline:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )
    pipe = diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=DIM,
        ),
        vae=autoencoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def cogvideox() -> diffusers.CogVideoXPipeline:
    torch.manual_seed(0)
    pipe = diffusers.CogVideoXPipeline(
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=DIM,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=5,
            max_text_seq_length=16,
        ),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def hunyuan_video() -> diffusers.HunyuanVideoPipeline:
    torch.manual_seed(0)
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=DIM,
            rope_axes_dim=(2, 4, 4),
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=texts.llama(),
        tokenizer=texts.tokenizer(),
        text_encoder_2=CLIPTextModel(clip_text_config(max_position_embeddings=77)),
        tokenizer_2=clip_tokenizer(),
    )
    return quiet(pipe)


def animatediff() -> diffusers.AnimateDiffPipeline:
    torch.manual_seed(0)
    pipe = diffusers.AnimateDiffPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_text_config()),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        motion_adapter=diffusers.MotionAdapter(
            block_out_channels=(16, 32),
            motion_layers_per_block=1,
            motion_mid_block_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
        ),
        scheduler=sd_scheduler("epsilon"),
    )
    return quiet(pipe)

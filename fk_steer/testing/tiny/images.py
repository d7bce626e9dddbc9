"""Pipelines of images beyond Stable Diffusion and Flux."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers import transformer_kandinsky
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..pipelines import DIM, clip_text_config, clip_tokenizer, quiet, sd, sd3, sd_scheduler, vae
from . import texts


def sd_inpaint() -> diffusers.StableDiffusionInpaintPipeline:
    components = sd(prediction_type="epsilon").components
    return quiet(diffusers.StableDiffusionInpaintPipeline(**components, requires_safety_checker=False))


def sd3_img2img() -> diffusers.StableDiffusion3Img2ImgPipeline:
    return quiet(diffusers.StableDiffusion3Img2ImgPipeline(**sd3().components))


def flux2() -> diffusers.Flux2Pipeline:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
    )
    # Latents are normalised with what it has seen in training.
    autoencoder.bn.running_mean.normal_(std=0.3)
    autoencoder.bn.running_var.uniform_(0.5, 1.5)
    pipe = diffusers.Flux2Pipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=[4, 4, 4, 4],
        ),
        vae=autoencoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.mistral3(),
        tokenizer=texts.tokenizer(),
    )
    for weight in pipe.transformer.parameters():
        if weight.ndim > 1:
            weight.data *= 2.0  # untrained, it hardly minds the text
    pipe.system_message = "You are a prompt engineer."
    return quiet(pipe)


def qwen_image() -> diffusers.QwenImagePipeline:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[0.8, 0.9, 1.1, 1.2],
    )
    autoencoder.decoder.conv_out.weight.data *= 8.0  # untrained, its images are grey
    pipe = diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=autoencoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=texts.qwen2_5_vl(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def z_image() -> diffusers.ZImagePipeline:
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipe = diffusers.ZImagePipeline(
        transformer=transformer,
        vae=vae(scaling_factor=0.36, shift_factor=0.12),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts.qwen3(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def sana() -> diffusers.SanaPipeline:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    pipe = diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        vae=autoencoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=texts.gemma2(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def pixart() -> diffusers.PixArtAlphaPipeline:
    torch.manual_seed(0)
    pipe = diffusers.PixArtAlphaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=DIM,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            norm_num_groups=4,
        ),
        vae=vae(),
        scheduler=sd_scheduler("epsilon"),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
    )
    return quiet(pipe)


def hidream() -> diffusers.HiDreamImagePipeline:
    torch.manual_seed(0)
    clips = [CLIPTextModelWithProjection(clip_text_config(max_position_embeddings=128)) for _ in range(2)]
    pipe = diffusers.HiDreamImagePipeline(
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[DIM, 16],
            text_emb_dim=2 * DIM,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        vae=vae(scaling_factor=0.36, shift_factor=0.12),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clips[0],
        tokenizer=clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=texts.t5(),
        tokenizer_3=texts.tokenizer(),
        text_encoder_4=texts.llama(causal=True),
        tokenizer_4=texts.tokenizer(),
    )
    pipe.default_sample_size = 8  # of latents: it makes the size asked for one of as many pixels
    return quiet(pipe)


def kandinsky5() -> diffusers.Kandinsky5T2IPipeline:
    torch.manual_seed(0)
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=DIM,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 2, 2),
            visual_cond=False,
            attention_type="regular",
        ),
        vae=eightfold_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=texts.qwen2_5_vl(),
        tokenizer=texts.tokenizer(),
        text_encoder_2=CLIPTextModel(clip_text_config(max_position_embeddings=77)),
        tokenizer_2=clip_tokenizer(),
    )
    for modulation in pipe.transformer.modules():
        if isinstance(modulation, transformer_kandinsky.Kandinsky5Modulation):
            # Untrained it lets nothing through, neither the text.
            torch.nn.init.normal_(modulation.out_layer.weight, std=0.3)
    pipe.resolutions = [(32, 32), (32, 64), (64, 32)]
    return quiet(pipe)


def eightfold_vae(**options: Any) -> diffusers.AutoencoderKL:
    """Eight pixels a side for each latent, for pipelines that take this for granted."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def deepfloyd_if() -> diffusers.IFPipeline:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=DIM,
        encoder_hid_dim=DIM,
        attention_head_dim=8,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    pipe = diffusers.IFPipeline(
        unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            variance_type="learned_range",
        ),
        text_encoder=texts.t5(),
        tokenizer=texts.tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return quiet(pipe)

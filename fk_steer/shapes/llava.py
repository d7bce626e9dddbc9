"""The world's multimodal LLM, of the kind of Phi-3.5-vision: what its LLaVA-Reward is built on."""

from __future__ import annotations

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import CLIPModel

from llava_reward_guide.backbones.phi3v import Phi3V, Phi3VConfig, Phi3VModel
from llava_reward_guide.backbones.text import TextTokenizer

from .models import WIDTH
from .tokenizer import words
from .world import SIZE


LAYERS = 4
BLANK = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>")


def make_text_tokenizer() -> TextTokenizer:
    """Llama's scheme (a leading blank belongs to its word, bytes for what is unknown) with the special tokens of Phi-3,
    in which each of the world's words is one token."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False)
    trained.train_from_iterator([BLANK + word for word in words()], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += sorted({BLANK, *"".join(words())}) + ["".join(merge) for merge in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return TextTokenizer(tokenizer)


def make_backbone(clip: CLIPModel) -> Phi3V:
    """A backbone whose tower begins as that of a CLIP of the world and whose text model is untrained.

    One crop of 64 x 64 pixels in patches of 8, 2 x 2 of them a visual token: 16 tokens for the crop and 16 for the
    global view, which is the same here.
    """
    tokenizer = make_text_tokenizer()
    vision = clip.config.vision_config.to_dict()
    layers = vision["num_hidden_layers"]
    ones = [1.0] * (WIDTH // 4 // 2)
    config = Phi3VConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=tokenizer.size,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        bos_token_id=tokenizer.id_of("<s>"),
        eos_token_id=tokenizer.id_of("</s>"),
        pad_token_id=tokenizer.id_of("<|endoftext|>"),
        rope_scaling={"type": "su", "short_factor": ones, "long_factor": ones},
        # The features are those of the layer before the last, which is not built.
        vision_config={**vision, "image_size": SIZE, "num_hidden_layers": layers + 1},
        num_crops=1,
    )
    model = Phi3VModel(config)
    tower = model.vision_embed_tokens.img_processor["vision_model"]
    weights = clip.vision_model.state_dict()
    tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
    # The end of the text, which is read, is the padding too, and would stay at zero.
    model.embed_tokens.padding_idx = None
    torch.nn.init.normal_(model.embed_tokens.weight, std=0.02)
    for separator in (model.vision_embed_tokens.glb_GN, model.vision_embed_tokens.sub_GN):
        torch.nn.init.normal_(separator, std=0.02)
    return Phi3V(model, tokenizer)

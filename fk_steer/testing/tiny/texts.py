"""A tokenizer for every family of text encoders, and tiny encoders of each."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..pipelines import DIM, PROMPTS


SPECIAL = ("<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
TEMPLATES = (
    "system user assistant You are a prompt engineer Describe the image by detailing the color shape size texture "
    "quantity text spatial relationships of the objects and background"
)
"""The words of the templates that Qwen-Image and Kandinsky put prompts into, of which they drop as many tokens as
Qwen's own tokenizer makes of them: one for each word and mark."""
MARKS = "\n .,:;!?'\"-_()<>|/"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class WordTokenizer(PreTrainedTokenizerFast):
    """Takes what processors of images and text take, too."""

    def __call__(self, *args: Any, images: None = None, videos: None = None, **options: Any) -> Any:
        return super().__call__(*args, **options)


@cache
def tokenizer() -> WordTokenizer:
    """Words that it knows are one token each, others one for each letter."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    words = [*SPECIAL, *re.findall(r"\w+", f"{TEMPLATES} {' '.join(PROMPTS)}")]
    words += [*MARKS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(" +"), "removed"),
        ]
    )
    pieces.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    made = WordTokenizer(
        tokenizer_object=pieces,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]),
    )
    made.chat_template = CHAT
    return made


def t5(dim: int = DIM) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer()), d_model=dim, d_kv=8, d_ff=2 * dim, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def umt5(dim: int = DIM) -> Any:
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer()), d_model=dim, d_kv=8, d_ff=2 * dim, num_layers=1, num_heads=2
    )
    return transformers.UMT5EncoderModel(config)


def _decoder(dim: int) -> dict[str, Any]:
    """Of the many decoders that differ in little."""
    return {
        "vocab_size": len(tokenizer()),
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": dim // 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def _loud(model: Any) -> Any:
    """With embeddings as large as those of trained models, so that the text matters."""
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    return model


def llama(dim: int = 16, causal: bool = False) -> Any:
    config = transformers.LlamaConfig(**_decoder(dim))
    return _loud((transformers.LlamaForCausalLM if causal else transformers.LlamaModel)(config))


def gemma2(dim: int = 16) -> Any:
    return _loud(transformers.Gemma2Model(transformers.Gemma2Config(**_decoder(dim), attn_implementation="eager")))


def qwen3(dim: int = 16) -> Any:
    return _loud(transformers.Qwen3Model(transformers.Qwen3Config(**_decoder(dim))))


def qwen2_5_vl(dim: int = 16) -> Any:
    rope = {"rope_type": "default", "mrope_section": [dim // 16, dim // 16, dim // 8]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": dim}
    config = transformers.Qwen2_5_VLConfig(text_config={**_decoder(dim), "rope_parameters": rope}, vision_config=vision)
    return _loud(transformers.Qwen2_5_VLForConditionalGeneration(config))


def mistral3(dim: int = 16) -> Any:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 30,
        "patch_size": 6,
    }
    config = transformers.Mistral3Config(
        text_config={**_decoder(dim), "model_type": "mistral"}, vision_config=vision, vision_feature_layer=-1
    )
    return _loud(transformers.Mistral3ForConditionalGeneration(config))

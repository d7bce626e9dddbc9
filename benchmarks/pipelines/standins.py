"""What Diffusers' tests load from the Hub, made here: tokenizers, processors and tiny models with random weights.

`offline` replaces `from_pretrained` of transformers' classes for the repositories below; anything else is loaded as
ever, which fails without a network.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LETTERS = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"-_()<>|/"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if 'text' in part %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
"""With the numbers that Qwen's models have in their configs."""


def clip_tokenizer(**options: Any) -> Any:
    """514 tokens: every byte, at the end of a word or not."""
    words = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab=_numbered(words), merges=[], **{"model_max_length": 77, **options})


def t5_tokenizer(**options: Any) -> Any:
    return transformers.T5Tokenizer(vocab=_pieces("<pad>", "</s>", "<unk>"), extra_ids=0, **options)


def roberta_like_tokenizer(**options: Any) -> Any:
    vocab = _pieces("<s>", "<pad>", "</s>", "<unk>") + [("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocab, **{"model_max_length": 77, **options})


def gemma_tokenizer(**options: Any) -> Any:
    """Eight tokens, which is what the tests' text encoders embed."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", "a", "e", "t"]
    return _chatty(transformers.GemmaTokenizer(vocab=_numbered(words), merges=[], **options))


def gemma3_tokenizer(**options: Any) -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS]
    return _chatty(transformers.GemmaTokenizer(vocab=_numbered(words), merges=[], **options))


def llama_tokenizer(**options: Any) -> Any:
    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    tokenizer = transformers.LlamaTokenizer(vocab=_numbered(words), merges=[], pad_token="<pad>", **options)
    return _chatty(tokenizer)


def bert_tokenizer(**options: Any) -> Any:
    letters = [letter for letter in LETTERS if not letter.isupper()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return transformers.BertTokenizer(vocab=_numbered(words), **{"model_max_length": 77, **options})


@cache
def pieces_of_templates() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in which the words of the pipelines' templates of prompts are tokens: pipelines drop and
    keep as many tokens as those templates have."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    texts = [
        node.value
        for file in sorted(folder.rglob("pipeline_*.py"))
        if "<|im_start|>" in (source := file.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "<|im_start|>" in node.value
    ]
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, min_frequency=1, initial_alphabet=BYTES, show_progress=False, special_tokens=[]
    )
    pieces.train_from_iterator([part for text in texts for part in re.split(r"<\|\w+\|>", text)], trainer)
    learned = json.loads(pieces.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


class QwenTokenizer(transformers.Qwen2Tokenizer):
    """With the vocabulary size by which models are made for it."""

    @property
    def vocab_size(self) -> int:
        return 151643


def qwen_tokenizer(kind: Any = QwenTokenizer, numbers: dict[str, int] = QWEN_TOKENS, **options: Any) -> Any:
    vocabulary, merges = pieces_of_templates()
    tokenizer = kind(vocab={**vocabulary, **numbers}, merges=merges, **options)
    tokenizer.add_tokens(list(numbers), special_tokens=True)
    return _chatty(tokenizer)


def small_numbers(*more: str) -> dict[str, int]:
    """Special tokens numbered without a gap."""
    first = len(pieces_of_templates()[0])
    return {token: first + index for index, token in enumerate([*QWEN_TOKENS, *more])}


def small_qwen_tokenizer(*more: str, **options: Any) -> Any:
    """Numbered without gaps, for models whose embeddings are made as long as the tokenizer."""
    return qwen_tokenizer(transformers.Qwen2Tokenizer, small_numbers(*more), **options)


def glm_tokenizer(**options: Any) -> Any:
    return small_qwen_tokenizer("[gMASK]", "<sop>", padding_side="left", **options)


def glm_image_processor(**options: Any) -> Any:
    marks = {"<|image|>": 167855, "<|dit_token_16384|>": 16384, "<|dit_token_16385|>": 16385}
    numbers = {"<|endoftext|>": 151329, "<sop>": 151330, "<eop>": 151331, **marks}
    tokenizer = qwen_tokenizer(transformers.Qwen2Tokenizer, numbers, bos_token="<|dit_token_16384|>")
    tokenizer.image_token = "<|image|>"
    tokenizer.grid_bos_token, tokenizer.grid_eos_token = "<sop>", "<eop>"
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% else %}<|image|>{% endif %}{% endfor %}{% endfor %}"
    )
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", return_value=None):
        images = transformers.GlmImageImageProcessor(patch_size=8)
        return transformers.GlmImageProcessor(images, tokenizer, chat_template=template)


def qwen_processor(kind: str, tokenizer: Any) -> Any:
    """Of images and text; transformers' video processor needs torchvision and no test uses it."""
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    images = transformers.Qwen2VLImageProcessor(
        min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28, size=size, patch_size=14, merge_size=2
    )
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", return_value=None):
        return getattr(transformers, kind)(images, tokenizer, None, chat_template=CHAT)


class ChatProcessor:
    """A processor of text alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)


def t5_config() -> Any:
    return transformers.T5Config(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )


def umt5_config() -> Any:
    return transformers.UMT5Config(vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)


def t5_encoder() -> Any:
    return transformers.T5EncoderModel(t5_config())


def umt5_encoder() -> Any:
    return transformers.UMT5EncoderModel(umt5_config())


def bert() -> Any:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=1124, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
        )
    )


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=1000, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
    )


def siglip() -> Any:
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=30,
            patch_size=2,
        )
    )


def gemma3() -> Any:
    text = {
        "vocab_size": 1000,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen2_vl() -> Any:
    text = {
        "vocab_size": 152064,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    numbers = small_numbers()
    text = {
        "vocab_size": max(numbers.values()) + 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 14,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=numbers["<|image_pad|>"],
        video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def chatglm() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=1024,
        hidden_size=8,
        ffn_hidden_size=8,
        kv_channels=4,
        num_attention_heads=2,
        seq_length=256,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        multi_query_attention=True,
        multi_query_group_num=2,
        rmsnorm=True,
        add_bias_linear=False,
        add_qkv_bias=True,
        original_rope=True,
        post_layer_norm=True,
    )
    return ChatGLMModel(config)


class BytePieces:
    """In place of the SentencePiece model of ChatGLM's tokenizer."""

    roles = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    special = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *roles)

    def __init__(self, model_path: str) -> None:
        self.bos_id, self.eos_id, self.pad_id = 1, 2, 0
        self.special_tokens = {token: 300 + index for index, token in enumerate(self.special)}
        self.index_special_tokens = {index: token for token, index in self.special_tokens.items()}
        self.n_words = 300 + len(self.special)
        self.role_special_token_expression = "|".join(re.escape(token) for token in self.roles)

    def tokenize(self, s: str, encode_special_tokens: bool = False) -> list[str]:
        return list(s)

    def convert_token_to_id(self, token: str) -> int:
        return self.special_tokens.get(token, 3 + ord(token[0]) % 256)

    def convert_id_to_token(self, index: int) -> str:
        return self.index_special_tokens.get(index, chr(max(index - 3, 0)))

    def decode_tokens(self, tokens: list[str]) -> str:
        return "".join(tokens)


def chatglm_tokenizer() -> Any:
    from diffusers.pipelines.kolors import tokenizer

    with mock.patch.object(tokenizer, "SPTokenizer", BytePieces):
        return tokenizer.ChatGLMTokenizer("")


def without_optional_libraries() -> None:
    """Put in place what Diffusers hides where sentencepiece, OpenCV or torchvision is missing, though the tests do
    without: Kolors, ConsisID, and of torchvision's transforms the few that Cosmos and OmniGen use."""
    kolors: Any = import_module("diffusers.pipelines.kolors")
    hidden = {
        "diffusers.pipelines.kolors.pipeline_kolors": "KolorsPipeline",
        "diffusers.pipelines.kolors.pipeline_kolors_img2img": "KolorsImg2ImgPipeline",
        "diffusers.pipelines.pag.pipeline_pag_kolors": "KolorsPAGPipeline",
        "diffusers.pipelines.consisid.pipeline_consisid": "ConsisIDPipeline",
    }
    kolors.ChatGLMModel = import_module("diffusers.pipelines.kolors.text_encoder").ChatGLMModel
    kolors.ChatGLMTokenizer = import_module("diffusers.pipelines.kolors.tokenizer").ChatGLMTokenizer
    for module, name in hidden.items():
        setattr(diffusers, name, getattr(import_module(module), name))
    processor: Any = import_module("diffusers.pipelines.omnigen.processor_omnigen")
    omnigen: Any = import_module("diffusers.pipelines.omnigen.pipeline_omnigen")
    omnigen.OmniGenMultiModalProcessor = processor.OmniGenMultiModalProcessor
    cosmos = ("diffusers.models.transformers.transformer_cosmos", "diffusers.models.controlnets.controlnet_cosmos")
    users: list[Any] = [processor, *(import_module(name) for name in cosmos)]
    for module in users:
        if not hasattr(module, "transforms"):
            module.transforms = TRANSFORMS


def _resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return F.interpolate(image, size, mode=interpolation)


TRANSFORMS = SimpleNamespace(
    functional=SimpleNamespace(resize=_resize),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    Compose=lambda steps: steps,
    Lambda=lambda function: function,
    ToTensor=lambda: None,
    Normalize=lambda **options: None,
)
"""Of torchvision's; OmniGen's are made and, without input images, not used."""


Make = Callable[..., Any]

REPOSITORIES: dict[str, dict[str, Make]] = {
    "hf-internal-testing/tiny-random-clip": {"Tokenizer": clip_tokenizer},
    "hf-internal-testing/tiny-random-t5": {"Config": t5_config, "Tokenizer": t5_tokenizer, "Model": t5_encoder},
    "hf-internal-testing/tiny-random-umt5": {"Config": umt5_config, "Tokenizer": t5_tokenizer, "Model": umt5_encoder},
    "YiYiXu/tiny-random-mclip-base": {"Tokenizer": roberta_like_tokenizer},
    "hf-internal-testing/tiny-random-BertModel": {"Tokenizer": bert_tokenizer, "Model": bert},
    "hf-internal-testing/dummy-gemma": {"Tokenizer": gemma_tokenizer},
    "hf-internal-testing/tiny-gemma3": {"Tokenizer": gemma3_tokenizer, "Model": gemma3},
    "hf-internal-testing/llama-tokenizer": {"Tokenizer": llama_tokenizer},
    "finetrainers/dummy-hunyaunvideo": {"Tokenizer": llama_tokenizer},
    "hf-internal-testing/tiny-random-LlamaForCausalLM": {"Tokenizer": llama_tokenizer, "Model": llama},
    "hf-internal-testing/tiny-random-chatglm3-6b": {"Tokenizer": chatglm_tokenizer, "Model": chatglm},
    "hf-internal-testing/tiny-random-SiglipVisionModel": {
        "Processor": lambda **options: transformers.SiglipImageProcessor(**options),
        "Model": siglip,
    },
    "hf-internal-testing/tiny-random-DPTForDepthEstimation": {
        "Processor": lambda **options: transformers.DPTImageProcessor(size={"height": 32, "width": 32}, **options)
    },
    "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": {
        "Tokenizer": qwen_tokenizer,
        "Model": qwen2_vl,
        "AutoProcessor": lambda **options: qwen_processor("Qwen2VLProcessor", qwen_tokenizer()),
        "Qwen2VLProcessor": lambda **options: qwen_processor("Qwen2VLProcessor", qwen_tokenizer()),
        "Qwen3VLProcessor": lambda **options: qwen_processor("Qwen3VLProcessor", qwen_tokenizer()),
    },
    "huangfeice/tiny-random-Qwen3VLForConditionalGeneration": {
        "Model": qwen3_vl,
        "Processor": lambda **options: qwen_processor("Qwen3VLProcessor", small_qwen_tokenizer()),
    },
    "zai-org/GLM-Image": {"GlmImageProcessor": glm_image_processor},
    "THUDM/glm-4-9b-chat": {"Tokenizer": glm_tokenizer},
    "hf-internal-testing/tiny-cosmos3-modular-pipe": {"Tokenizer": qwen_tokenizer},
    "hf-internal-testing/Mistral-Small-3.1-24B-Instruct-2503-only-processor": {
        "Processor": lambda **options: ChatProcessor(llama_tokenizer())
    },
}
"""Repository -> what is made in place of its files, by the name of the class that asks for it, or how that ends."""


@contextmanager
def offline() -> Iterator[None]:
    """While the context lasts, `from_pretrained` gives the above."""
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    owners = [
        PreTrainedTokenizerBase,
        ProcessorMixin,
        transformers.AutoTokenizer,
        transformers.AutoConfig,
        transformers.AutoProcessor,
        transformers.PreTrainedModel,
        transformers.image_processing_base.ImageProcessingMixin,
        ChatGLMTokenizer,
    ]
    with ExitStack() as patches:
        for owner in owners:
            patches.enter_context(mock.patch.object(owner, "from_pretrained", _replaced(owner.from_pretrained)))
        yield


def _replaced(stock: Any) -> Any:
    function = getattr(stock, "__func__", stock)

    def from_pretrained(cls: Any, repository: Any, *args: Any, **kwargs: Any) -> Any:
        makers = REPOSITORIES.get(str(repository), {})
        name = cls.__name__
        kind = "Tokenizer" if "Tokenizer" in name else "Processor" if "Processor" in name else "Model"
        make = makers.get(name) or makers.get("Config" if name.endswith("Config") else kind)
        if make is None:
            return function(cls, repository, *args, **kwargs)
        if kind == "Model":
            torch.manual_seed(0)
            return make() if name.endswith("Config") else make().eval()
        dropped = ("subfolder", "trust_remote_code", "use_fast", "truncation")
        return make(**{option: value for option, value in kwargs.items() if option not in dropped})

    return classmethod(from_pretrained)


def _numbered(words: Any) -> dict[str, int]:
    return {word: index for index, word in enumerate(words)}


def _pieces(*special: str) -> list[tuple[str, float]]:
    return [*((token, 0.0) for token in special), *((letter, -1.0 - 0.01 * i) for i, letter in enumerate(LETTERS))]


def _chatty(tokenizer: Any) -> Any:
    tokenizer.chat_template = CHAT
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer

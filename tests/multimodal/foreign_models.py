"""Tiny random image-text-to-text models of transformers, saved to disk in the real format with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foveate.vision.registry import seeded

WORDS = "what is in the image where red disc a user assistant yes no big small blue one two three A B C".split()
SPECIAL = ["<pad>", "</s>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
IDEFICS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
# What a template writes for an image, where it is not "<image>".
MARKS = {
    "gemma3": "<|vision_start|>", "glm4v": "<|vision_start|><image><|vision_end|>", "internvl": "<|image_pad|>",
    "qwen2_5_vl": QWEN, "qwen2_vl": QWEN, "qwen3_vl": QWEN,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 400, "eos_token_id": 1, "pad_token_id": 0,
    "bos_token_id": None,
}  # fmt: skip
VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}


def tokenizer(**marks: str) -> Any:
    """Words of the tests; `marks` are the tokens that a processor asks its tokenizer for by name."""
    names = [*SPECIAL, *IDEFICS, *TILES, "<unk>", ":", *WORDS]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [*SPECIAL[2:], *IDEFICS, *TILES]
    # An empty table would take the place of the other special tokens.
    named: dict[str, Any] = {"extra_special_tokens": marks} if marks else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=special, **named,
    )  # fmt: skip


def template(mark: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + mark + " {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )


# Seed, scale of all weights and of the projection of images, where answers do not depend on both question and image
# with (0, 4, 1): many random models repeat one word. Found by trying; see test_answers_depend_on_question_and_image.
DRAWS = {
    "internvl": (24, 4, 1),
    "kosmos-2": (2, 8, 40),
    "llava_next": (3, 4, 1),
    "llava_onevision": (1, 4, 1),
    "paligemma": (1, 8, 1),
    "qwen2_vl": (7, 4, 1),
}


def save(family: str, folder: Path) -> Path:
    """A model of a family with its processor and chat template."""
    seed, scale, projection = DRAWS.get(family, (0, 4, 1))
    words = tokenizer()
    ids = words.convert_tokens_to_ids
    size = len(words)
    with seeded(seed):
        model, processor = BUILDERS[family](words, ids, {**TEXT, "vocab_size": size})
        model = model.eval()
        with torch.no_grad():
            # Apart, so that answers depend on the image: at their usual scale random models repeat one word.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    # Gemma 3's projection of images begins as zeros, and nothing of an image would be seen.
                    parameter.mul_(scale) if parameter.any() else parameter.normal_(std=0.1)
            for name, parameter in model.named_parameters():
                if "projector" in name or "image_to_text_projection.dense" in name:
                    parameter.mul_(projection)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _llava(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VIT, image_size=32), text_config=t.LlamaConfig(**text),
        image_token_index=ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    sides = {"height": 32, "width": 32}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=sides), words, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip
    return t.LlavaForConditionalGeneration(config), processor


def _llava_next(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    points = [[32, 64], [64, 32], [64, 64]]
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VIT, image_size=32), text_config=t.LlamaConfig(**text),
        image_token_index=ids("<image>"), image_grid_pinpoints=points,
    )  # fmt: skip
    sides = {"height": 32, "width": 32}
    processor = t.LlavaNextProcessor(
        t.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=sides, image_grid_pinpoints=points), words,
        patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def _idefics3(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    config = t.Idefics3Config(
        vision_config={**VIT, "image_size": 32}, text_config={**text, "model_type": "llama"}, scale_factor=2,
        image_token_id=ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    images = t.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = t.Idefics3Processor(images, words, image_seq_len=4, chat_template=template("<image>"))
    return t.Idefics3ForConditionalGeneration(config), processor


def _qwen(kind: str) -> Any:
    def build(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        import transformers as t

        vision: dict[str, Any] = {"depth": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
        if kind == "Qwen2VL":
            vision |= {"embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
        if kind == "Qwen2_5_VL":
            vision |= {"fullatt_block_indexes": [1], "window_size": 16}
        if kind == "Qwen3VL":
            vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
            text = {**text, "head_dim": 16}
        section = [2, 3, 3]
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
        config = getattr(t, f"{kind}Config")(
            vision_config=vision, text_config={**text, "rope_parameters": rope},
            image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        )  # fmt: skip
        sizes = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        images = t.Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes)
        videos = t.Qwen2VLVideoProcessor() if kind != "Qwen3VL" else t.Qwen3VLVideoProcessor()
        processor = getattr(t, f"{kind}Processor")(images, words, videos, chat_template=template(QWEN))
        return getattr(t, f"{kind}ForConditionalGeneration")(config), processor

    return build


def _smolvlm(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    config = t.SmolVLMConfig(
        vision_config={**VIT, "image_size": 32}, text_config={**text, "model_type": "llama"}, scale_factor=2,
        image_token_id=ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    images = t.SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    videos = t.SmolVLMVideoProcessor()
    processor = t.SmolVLMProcessor(images, words, videos, image_seq_len=4, chat_template=template("<image>"))
    return t.SmolVLMForConditionalGeneration(config), processor


def _internvl(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    config = t.InternVLConfig(
        vision_config={**VIT, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={**text, "model_type": "qwen2"}, image_token_id=ids("<|image_pad|>"), image_seq_length=4,
        downsample_ratio=0.5,
    )  # fmt: skip
    images = t.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False)
    named = tokenizer(
        start_image_token="<|vision_start|>", end_image_token="<|vision_end|>", context_image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )  # fmt: skip
    videos = t.InternVLVideoProcessor()
    mark = template(MARKS["internvl"])
    processor = t.InternVLProcessor(images, named, videos, image_seq_length=4, chat_template=mark)
    return t.InternVLForConditionalGeneration(config), processor


def _gemma3(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    windows = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    config = t.Gemma3Config(
        vision_config={**VIT, "image_size": 32},
        text_config={**text, **windows, "model_type": "gemma3_text", "head_dim": 16}, mm_tokens_per_image=4,
        image_token_index=ids("<image>"), boi_token_index=ids("<|vision_start|>"),
        eoi_token_index=ids("<|vision_end|>"),
    )  # fmt: skip
    named = tokenizer(boi_token="<|vision_start|>", eoi_token="<|vision_end|>", image_token="<image>")
    images = t.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    mark = template(MARKS["gemma3"])
    return t.Gemma3ForConditionalGeneration(config), t.Gemma3Processor(
        images, named, image_seq_length=4, chat_template=mark
    )


def _paligemma(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    # Its processor adds 1,152 tokens of places and segments.
    config = t.PaliGemmaConfig(
        vision_config={**VIT, "image_size": 32, "model_type": "siglip_vision_model", "projection_dim": 32},
        text_config={**text, "model_type": "gemma", "head_dim": 16, "vocab_size": text["vocab_size"] + 1160},
        image_token_index=ids("<image>"), projection_dim=32, hidden_size=32,
    )  # fmt: skip
    images = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    words.bos_token = "<unk>"
    # Released processors have no template; `open_foreign` brings one.
    return t.PaliGemmaForConditionalGeneration(config), t.PaliGemmaProcessor(images, words)


def _glm4v(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    vision: dict[str, Any] = {"depth": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "image_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    config = t.Glm4vConfig(
        vision_config=vision, text_config={**text, "rope_parameters": rope}, image_token_id=ids("<image>"),
        image_start_token_id=ids("<|vision_start|>"), image_end_token_id=ids("<|vision_end|>"),
        video_token_id=ids("<|video_pad|>"),
    )  # fmt: skip
    sizes = {"shortest_edge": 512, "longest_edge": 4608}
    images = t.Glm4vImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes)
    named = tokenizer(image_token="<image>", video_token="<|video_pad|>")
    mark = template(MARKS["glm4v"])
    return t.Glm4vForConditionalGeneration(config), t.Glm4vProcessor(
        images, named, t.Glm4vVideoProcessor(), chat_template=mark
    )


def _llava_onevision(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    points = [[32, 64], [64, 32]]
    config = t.LlavaOnevisionConfig(
        vision_config={**VIT, "image_size": 32, "model_type": "siglip_vision_model"},
        text_config={**text, "model_type": "qwen2"}, image_token_index=ids("<image>"),
        video_token_index=ids("<|video_pad|>"), image_grid_pinpoints=points,
    )  # fmt: skip
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=points), words,
        t.LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=template("<image>"), video_token="<|video_pad|>",
    )  # fmt: skip
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _kosmos2(words: Any, ids: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    names = ["<pad>", "</s>", "<unk>", "<s>", "<image>", "</image>", "<grounding>", ":", "Question", "Answer", *WORDS]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    named = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", bos_token="<s>"
    )
    sides = {"height": 32, "width": 32}
    # Released processors have no template; `open_foreign` brings one.
    processor = t.Kosmos2Processor(t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=sides), named)
    size = {"embed_dim": 32, "ffn_dim": 48, "layers": 2, "attention_heads": 2, "max_position_embeddings": 400}
    config = t.Kosmos2Config(
        vision_config={**VIT, "image_size": 32},
        text_config={**size, "vocab_size": len(named), "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 3},
    )
    return t.Kosmos2ForConditionalGeneration(config), processor


BUILDERS = {
    "kosmos-2": _kosmos2,
    "gemma3": _gemma3,
    "glm4v": _glm4v,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "paligemma": _paligemma,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "llava_next": _llava_next,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen("Qwen2VL"),
    "qwen2_5_vl": _qwen("Qwen2_5_VL"),
    "qwen3_vl": _qwen("Qwen3VL"),
}

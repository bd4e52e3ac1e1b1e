"""A random LLaVA in the format of transformers that always answers: for servers, whose time does not need sense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SPECIAL = ("<pad>", "</s>", "<image>", "<unk>")
_WORDS = tuple(
    f"{first}{second}" for first in ("ba", "de", "fi", "go", "ku", "la", "mo", "nu") for second in "bdfgklmn"
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
_SIDE, _PATCH = 224, 16


def write_random_vlm(
    folder: Path,
    *,
    words: Sequence[str] = _WORDS,
    side: int = _SIDE,
    patch: int = _PATCH,
    width: int = 256,
    layers: int = 8,
    never_ends: bool = True,
) -> Path:
    """Write a model of random weights with its processor, by default 10 million: CLIP of 224 px, Llama of 8 layers.

    Args:
        words: that it reads and writes. side, patch: of images in pixels. width, layers: of CLIP and of Llama.
        never_ends: draw the head so that no answer ends before its limit.
    """
    import torch
    import transformers as t

    torch.manual_seed(0)
    tokenizer = _make_tokenizer(words)
    shape: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 4}
    text = t.LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**shape, image_size=side, patch_size=patch),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch) ** 2,
    )
    model = t.LlavaForConditionalGeneration(config).eval()
    if never_ends:
        with torch.no_grad():
            # Logits of special tokens are 0, and of two words with opposite weights one is far above: the end is never
            # drawn, which a server would answer with no text at all.
            weight: Any = model.get_output_embeddings().weight
            weight.zero_()
            weight[len(_SPECIAL) :: 2] = torch.randn_like(weight[len(_SPECIAL) :: 2]) * 2
            weight[len(_SPECIAL) + 1 :: 2] = -weight[len(_SPECIAL) :: 2]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    t.LlavaProcessor(
        t.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _make_tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: number for number, name in enumerate((*_SPECIAL, *words))}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )

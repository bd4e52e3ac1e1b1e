"""Random LLaVAs in the format of transformers that always answer: for timings, which do not need sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Shape:
    """Sizes of a random LLaVA: its tower (CLIP or SigLIP) sees `side` pixels in patches of `patch`; its Llama."""

    tower: dict[str, Any]
    text: dict[str, Any]
    side: int = 224
    patch: int = 16
    is_siglip: bool = False
    rows: int | None = field(default=None)  # of the table of embeddings; by default the words of the tokenizer


_SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}
SMALL = Shape(_SMALL, _SMALL)
# SmolLM2-135M behind the base tower of SigLIP 2 at 256 pixels: 256 tokens an image.
SMOL = Shape(
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    side=256, is_siglip=True, rows=49152,
)  # fmt: skip


def write_random_vlm(
    folder: Path, shape: Shape = SMALL, *, words: Sequence[str] = _WORDS, never_ends: bool = True
) -> Path:
    """Write a model of random weights with its processor; by default one of 10 million, with CLIP and 64 words.

    Args:
        words: that it reads and writes. never_ends: draw the head so that no answer ends before its limit.
    """
    import torch
    import transformers as t

    torch.manual_seed(0)
    tokenizer = _make_tokenizer(words)
    text = t.LlamaConfig(
        **shape.text,
        vocab_size=shape.rows or len(tokenizer),
        max_position_embeddings=2048 if shape.is_siglip else 1024,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    tower = (t.SiglipVisionConfig if shape.is_siglip else t.CLIPVisionConfig)(
        **shape.tower, image_size=shape.side, patch_size=shape.patch
    )
    config = t.LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(shape.side // shape.patch) ** 2,
        vision_feature_select_strategy="full" if shape.is_siglip else "default",
        tie_word_embeddings=bool(shape.text.get("tie_word_embeddings")),
    )
    model = t.LlavaForConditionalGeneration(config).eval()
    if never_ends:
        with torch.no_grad():
            # Logits of special tokens are 0, and of two words with opposite weights one is far above: the end is never
            # drawn, which a server would answer with no text at all.
            weight: Any = model.get_output_embeddings().weight
            weight.zero_()
            first, last = len(_SPECIAL), len(tokenizer)
            weight[first:last:2] = torch.randn_like(weight[first:last:2]) * 2
            weight[first + 1 : last : 2] = -weight[first:last:2]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    sides = {"height": shape.side, "width": shape.side}
    images = (
        t.SiglipImageProcessor(size=sides)
        if shape.is_siglip
        else t.CLIPImageProcessor(size={"shortest_edge": shape.side}, crop_size=sides)
    )
    t.LlavaProcessor(
        images,
        tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if shape.is_siglip else 1,
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

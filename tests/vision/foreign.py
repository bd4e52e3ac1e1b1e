"""Tiny random models of other libraries, saved to disk in the format that their real ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from foveate.vision.registry import seeded

WORDS = "a red green blue yellow disc square triangle and number image of the cat dog in front garden long".split()
TEXTS = ["a cat", "", "a red disc in front of an image of the garden and the dog " * 6, "Zebra 42 & more"]
SIZE, PATCH, WIDTH, EMBED = 32, 8, 32, 24


def pixels(height: int = SIZE, width: int = SIZE, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def clip_tokenizer(length: int = 16) -> Any:
    """Bytes without merges: CLIP's real class, a vocabulary of 514."""
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=length
    )


def save_clip(folder: Path, *, eos_token_id: int | None = None, projection_dim: int = EMBED, seed: int = 0) -> Path:
    """A `CLIPModel` with processor and tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = clip_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": 514,
            "max_position_embeddings": 16,
            "bos_token_id": 512,
            "eos_token_id": 513 if eos_token_id is None else eos_token_id,
            "pad_token_id": 513,
        },
        vision_config={**shared, "image_size": SIZE, "patch_size": PATCH},
        projection_dim=projection_dim,
    )
    with seeded(seed):
        model = CLIPModel(config).eval()
        _shake(model)
        model.logit_scale.data.fill_(4.0)
    model.save_pretrained(folder)
    sides = {"height": SIZE, "width": SIZE}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=sides), tokenizer).save_pretrained(folder)
    return folder


def _shake(model: torch.nn.Module) -> None:
    """Norms and biases off their ones and zeros, so that forgetting one is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))


def word_tokenizer(length: int = 12) -> Any:
    """A fast tokenizer in tokenizer.json: words, padded with the end token, as SigLIP's are."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["</s>", "<unk>", *WORDS])}, "<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=length
    )


def sentencepiece_file(folder: Path) -> Path:
    """A SentencePiece model trained on a few words; `spiece.model`."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.text"
    corpus.write_text("\n".join(" ".join(WORDS[index:] + WORDS[:index]) for index in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=60, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def save_siglip(folder: Path, *, tokenizer: Any = None, patch: int = PATCH, size: int = SIZE) -> Path:
    """A `SiglipModel` with processor and tokenizer."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    shared = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**shared, "vocab_size": 80, "max_position_embeddings": 12, "projection_size": WIDTH},
        vision_config={**shared, "image_size": size, "patch_size": patch},
    )
    with seeded(0):
        model = SiglipModel(config).eval()
        _shake(model)
        model.logit_scale.data.fill_(4.7)
        model.logit_bias.data.fill_(-12.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path, *, registers: int = 0) -> Path:
    """A `Dinov2Model`, or one with registers, and its processor (shortest side 36, then the middle 32)."""
    from transformers import (
        BitImageProcessor,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    shared: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    with seeded(0):
        if registers:
            model: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shared, num_register_tokens=registers))
        else:
            model = Dinov2Model(Dinov2Config(**shared))
        _shake(model.eval())
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 36},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def save_timm(folder: Path, *, name: str = "vit_tiny_patch16_224", **arguments: Any) -> Any:
    """A ViT of timm in its hub format; returns the model."""
    import timm
    from timm.models import save_for_hf

    options = {"depth": 2, "embed_dim": WIDTH, "num_heads": 2, "img_size": SIZE, "patch_size": PATCH, **arguments}
    with seeded(0):
        model = timm.create_model(name, pretrained=False, num_classes=5, **options).eval()
        _shake(model)
    save_for_hf(model, folder, model_args=options, safe_serialization=True)
    return model


def save_open_clip(folder: Path, *, embed_dim: int = EMBED) -> Path:
    """A CLIP of open_clip as `local-dir:`."""
    from foveate.vision.open_clip.export import export_open_clip
    from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

    with seeded(0):
        image = OpenClipImageEncoder(
            model="ViT-B-16",
            embed_dim=embed_dim,
            vision={"layers": 2, "width": 64, "head_width": 32, "patch_size": PATCH, "image_size": SIZE},
        )
        text = OpenClipTextEncoder(
            model="ViT-B-16", embed_dim=embed_dim, text={"layers": 2, "width": 48, "heads": 2, "context_length": 16}
        )
    export_open_clip(image, text, log_scale=3.5, folder=folder)
    return folder

"""Export towers of open_clip: as its own folder, or as a CLIP model of transformers with the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, write_bytes_atomically, write_json_atomically
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder
from foveate.vision.preprocess import Preprocess

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_SHARED_BY_TOWERS = ("embed_dim", "quick_gelu")
_RESIZE_MODES = {"letterbox": "longest", "center_crop": "shortest", "stretch": "squash"}


def check_pair(image: OpenClipImageEncoder, text: OpenClipTextEncoder) -> None:
    """Raise UserError, naming the field that differs, for towers that one open_clip model cannot hold."""
    for key in _SHARED_BY_TOWERS:
        ours, theirs = image.model_config.get(key), text.model_config.get(key)
        if ours != theirs:
            raise UserError(
                f"the image tower has {key} {ours} and the text tower {theirs}: open_clip holds one for both; "
                "`--to onnx` and `--to embeddings` take this model as it is"
            )


def export_open_clip(
    image: OpenClipImageEncoder,
    text: OpenClipTextEncoder,
    *,
    log_scale: Tensor | float,
    folder: Path,
    logit_bias: float | None = None,
) -> None:
    """Write open_clip_config.json, open_clip_model.safetensors and the tokenizer's files, if it has any.

    Args:
        image, text: towers of the same joint width.
        log_scale: logarithm of 1 / temperature.
        folder: created if it does not exist.
        logit_bias: of a sigmoid loss between images and texts; None for a softmax.

    Raises:
        UserError: see `check_pair`.
    """
    check_pair(image, text)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"visual.{name}": value for name, value in image.visual.state_dict().items()}
    state |= text.text_model.state_dict()
    # A scalar in open_clip; here it has shape (1,), for FSDP2.
    state["logit_scale"] = torch.as_tensor(log_scale, dtype=torch.float32).reshape(())
    # open_clip creates a bias only where the configuration names one, and then expects it among the weights.
    model = {key: value for key, value in text.model_config.items() if key != "init_logit_bias"}
    if logit_bias is not None:
        state["logit_bias"] = torch.tensor(float(logit_bias))
        model["init_logit_bias"] = float(logit_bias)
    temporary = folder / (WEIGHTS_FILE + ".partial")
    # Cloned, because safetensors refuses tensors that share memory.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
    commit_atomically(temporary, folder / WEIGHTS_FILE)
    preprocess = image.preprocess
    for name, content in text.tokenizer_files().items():
        write_bytes_atomically(folder / name, content)
    write_json_atomically(
        folder / CONFIG_FILE,
        {
            "model_cfg": {
                **model,
                "vision_cfg": image.model_config["vision_cfg"],
                "text_cfg": _self_contained(text),
            },
            "preprocess_cfg": {
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
                "interpolation": preprocess.interpolation,
                "resize_mode": _RESIZE_MODES[preprocess.geometry],
                # open_clip fills with one gray level.
                "fill_color": round(math.fsum(preprocess.fill) / 3),
            },
        },
    )


def _self_contained(text: OpenClipTextEncoder) -> dict[str, Any]:
    """Return the text configuration, with the name of a tokenizer of `transformers` where the folder has one."""
    config = dict(text.model_config["text_cfg"])
    if hasattr(text.tokenizer, "save_pretrained") and not config.get("hf_tokenizer_name"):
        config["hf_tokenizer_name"] = text.model_name
    return config


# open_clip towers of the standard kind as a `transformers` CLIP model: the same weights under other names.
#
# Standard is what `CLIPModel` computes: a plain ViT with a class token, a norm before the layers and learned positions;
# a causal text transformer read at its end token; projections without bias. Everything else is refused by its field.


START, END = "<|startoftext|>", "<|endoftext|>"
# Merges of CLIP's byte pairs. Its vocabulary: 256 bytes, the same bytes ending a word, the merges, start and end.
_MERGES = 49152 - 256 - 2
# Fields of open_clip's configuration that `CLIPModel` has no counterpart for, with the only value it can follow.
_PLAIN = {
    "ls_init_value": None,
    "block_type": None,
    "act_kwargs": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_VISION = {
    **_PLAIN,
    "timm_model_name": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pool_type": "tok",
}
_TEXT = {
    **_PLAIN,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "tokenizer_kwargs": None,
}


def check_standard(image: OpenClipImageEncoder, text: OpenClipTextEncoder) -> None:
    """Raise UserError, naming the field of open_clip's configuration, for towers that `CLIPModel` does not compute."""
    for name, config, plain in (
        ("vision_cfg", image.model_config["vision_cfg"], _VISION),
        ("text_cfg", text.model_config["text_cfg"], _TEXT),
    ):
        for key, allowed in plain.items():
            value = config.get(key, allowed)
            # Empty values mean the default, but a LayerScale that starts at 0 is one.
            if value != allowed and (value or allowed or key == "ls_init_value"):
                raise UserError(
                    f"{name}.{key} is {value!r}: transformers' CLIPModel computes {allowed!r} only; "
                    "`--to open_clip` and `--to onnx` take this model as it is"
                )
        norms = config.get("norm_kwargs") or {}
        if set(norms) - {"eps"}:
            raise UserError(f"{name}.norm_kwargs: transformers' CLIPModel has only eps (got {norms!r})")
    # `clip_tokenizer` writes CLIP's byte pairs, whose ids would select wrong embeddings of any other vocabulary.
    vocabulary = text.model_config["text_cfg"].get("vocab_size", 49408)
    if vocabulary != _MERGES + 2 * 256 + 2:
        raise UserError(
            f"text_cfg.vocab_size: not that of open_clip's byte pairs (got {vocabulary}); expected {_MERGES + 514}"
        )


def clip_model(image: OpenClipImageEncoder, text: OpenClipTextEncoder, *, log_scale: float) -> Any:
    """Build a `transformers.CLIPModel` in float32 on the CPU with the weights of both towers.

    Args:
        log_scale: logarithm of 1 / temperature.

    Raises:
        UserError: see `check_standard`.
    """
    from transformers import CLIPConfig, CLIPModel

    check_standard(image, text)
    model = CLIPModel(CLIPConfig(**_configuration(image, text, log_scale)))
    state = {**_vision_state(image.visual), **_text_state(text.text_model)}
    state["logit_scale"] = torch.tensor(float(log_scale))
    # Strict, so that a weight that nothing was mapped to fails here instead of staying random.
    model.load_state_dict({name: value.detach().cpu().float() for name, value in state.items()}, strict=True)
    return model.eval()


def _configuration(image: OpenClipImageEncoder, text: OpenClipTextEncoder, log_scale: float) -> dict[str, Any]:
    visual, tower = image.visual, _text_tower(text.text_model)
    return {
        "projection_dim": image.embed_dim,
        "logit_scale_init_value": float(log_scale),
        "vision_config": {
            **_layers(visual.transformer, visual.ln_post, image.model_config),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": image.embed_dim,
        },
        "text_config": {
            **_layers(tower.transformer, tower.ln_final, text.model_config),
            "vocab_size": tower.token_embedding.num_embeddings,
            "max_position_embeddings": len(tower.positional_embedding),
            "projection_dim": text.embed_dim,
            "bos_token_id": _MERGES + 512,
            "eos_token_id": _MERGES + 513,
            # CLIP has no padding token of its own; in transformers, the end token serves as one.
            "pad_token_id": _MERGES + 513,
        },
    }


def _layers(transformer: nn.Module, norm: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read widths and counts from the layers themselves: names of configurations differ between releases."""
    blocks: Any = transformer.resblocks
    first = blocks[0]
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "layer_norm_eps": norm.eps,
    }


def _text_tower(model: nn.Module) -> Any:
    """Return the text tower: open_clip has its parts in the model itself, or in its `text`."""
    return model.text if hasattr(model, "text") else model


def _vision_state(visual: Any) -> dict[str, Tensor]:
    prefix = "vision_model."
    return {
        f"{prefix}embeddings.class_embedding": visual.class_embedding,
        f"{prefix}embeddings.patch_embedding.weight": visual.conv1.weight,
        f"{prefix}embeddings.position_embedding.weight": visual.positional_embedding,
        **_norm(f"{prefix}pre_layrnorm", visual.ln_pre),
        **_blocks(f"{prefix}encoder.layers", visual.transformer),
        **_norm(f"{prefix}post_layernorm", visual.ln_post),
        # open_clip multiplies x @ proj, nn.Linear x @ weight.T.
        "visual_projection.weight": visual.proj.T.contiguous(),
    }


def _text_state(model: nn.Module) -> dict[str, Tensor]:
    prefix, tower = "text_model.", _text_tower(model)
    projection = tower.text_projection
    weight = projection.weight if isinstance(projection, nn.Linear) else projection.T.contiguous()
    return {
        f"{prefix}embeddings.token_embedding.weight": tower.token_embedding.weight,
        f"{prefix}embeddings.position_embedding.weight": tower.positional_embedding,
        **_blocks(f"{prefix}encoder.layers", tower.transformer),
        **_norm(f"{prefix}final_layer_norm", tower.ln_final),
        "text_projection.weight": weight,
    }


def _norm(name: str, norm: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _linear(name: str, layer: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}


def _blocks(name: str, transformer: Any) -> dict[str, Tensor]:
    """Convert residual blocks; the joint attention projection is split into queries, keys and values."""
    state: dict[str, Tensor] = {}
    for number, block in enumerate(transformer.resblocks):
        index = f"{name}.{number}"
        # nn.MultiheadAttention stacks them in the order queries, keys, values.
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{index}.self_attn.{part}_proj.weight"] = weight.contiguous()
            state[f"{index}.self_attn.{part}_proj.bias"] = bias.contiguous()
        state |= _linear(f"{index}.self_attn.out_proj", block.attn.out_proj)
        state |= _norm(f"{index}.layer_norm1", block.ln_1) | _norm(f"{index}.layer_norm2", block.ln_2)
        state |= _linear(f"{index}.mlp.fc1", block.mlp.c_fc) | _linear(f"{index}.mlp.fc2", block.mlp.c_proj)
    return state


def clip_tokenizer(context_length: int) -> Any:
    """Convert open_clip's byte pairs to a `transformers.CLIPTokenizer`: the same ids up to the end token.

    Behind it open_clip fills with 0 and this one with the end token, which no causal text tower sees.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    bpe = SimpleTokenizer()
    names = {bpe.sot_token_id: START, bpe.eot_token_id: END}
    vocabulary = {names.get(number, token): number for token, number in bpe.encoder.items()}
    # Pairs, as `tokenizers` takes them: its own type says lines.
    merges: Any = [pair for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def clip_image_processor(preprocess: Preprocess) -> Any:
    """Convert the geometry to a `transformers.CLIPImageProcessor`.

    A letterbox is a resize of the long side, and a center crop of the square, which pads with black where the image
    is smaller.

    Raises:
        UserError: for a padding that is not black, and for nearest-neighbor or Lanczos resizing.
    """
    from PIL.Image import Resampling
    from transformers import CLIPImageProcessor

    if preprocess.geometry == "letterbox" and any(preprocess.fill):
        raise UserError(
            f"preprocess.fill: transformers' CLIPImageProcessor pads with black (got {list(preprocess.fill)})"
        )
    if preprocess.interpolation not in ("bilinear", "bicubic"):
        raise UserError(
            f"preprocess.interpolation is '{preprocess.interpolation}': transformers' CLIPImageProcessor resizes alike "
            "with 'bilinear' and 'bicubic' only"
        )
    shared: dict[str, Any] = {
        "resample": Resampling[preprocess.interpolation.upper()].value,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if preprocess.geometry == "stretch":
        size = {"height": preprocess.height, "width": preprocess.width}
        return CLIPImageProcessor(size=size, do_center_crop=False, **shared)
    side = preprocess.side
    whole = {"max_height": side, "max_width": side}
    return CLIPImageProcessor(
        size=whole if preprocess.geometry == "letterbox" else {"shortest_edge": side},
        crop_size={"height": side, "width": side},
        **shared,
    )

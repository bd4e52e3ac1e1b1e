"""Find and build models of open_clip: by name, folder or hub repository, or from a complete configuration."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import UserError, nearest, shorten_reason
from foveate.core.hub import fetch, say_lookup
from foveate.records.geometry import InputSize

_QUIET = threading.RLock()
# About 32 MB: more distinct words than most captions have.
_MAX_CACHED_WORDS = 131_072

# The tower that is not wanted, built without trained weights, is made as small as open_clip allows.
NO_VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}
NO_TEXT = {"layers": 1, "width": 64, "heads": 1, "context_length": 8}
# Its embeddings of 49,408 words, which nobody reads, would take more time than all else of a small image tower.
NO_WORDS = {"vocab_size": 2}


def create_open_clip(
    model: str,
    *,
    pretrained: str | None = None,
    embed_dim: int | None = None,
    image_size: InputSize | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build an open_clip model in float32 on the CPU; return it with its configuration.

    Args:
        model: architecture name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        pretrained: tag or file of an architecture's weights.
        embed_dim: E. Trained weights have their own, which must agree.
        image_size: side of the input in pixels; position embeddings of trained weights are interpolated.
        vision, text: changes to the architecture's `vision_cfg` and `text_cfg`, for models without trained weights.
        cache_dir: where downloads are kept.
        config: a complete open_clip `model_cfg`; then `model` is only a label and no weights are fetched.

    Raises:
        UserError: for an unknown name, a folder or a hub out of reach, or changes that trained weights cannot follow.
    """
    import open_clip
    from open_clip.factory import parse_model_name

    if config is not None:
        return _from_config(config), dict(config)
    scheme = parse_model_name(model)[0] if ":" in model else None
    if ":" in model and scheme is None:
        raise UserError(
            f"open_clip model: no such form (got '{model}'); expected a name, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'"
        )
    names = open_clip.list_models()
    if scheme is None and model not in names:
        raise UserError(
            f"open_clip has no architecture '{model}'; "
            f"`python -c 'import open_clip; print(open_clip.list_models())'` lists all{nearest(model, names)}"
        )
    trained = pretrained is not None or scheme is not None
    changes: dict[str, Any] = {}
    if trained and (vision or text):
        raise UserError(
            f"'{model}': its weights are trained; vision and text settings can only change untrained towers"
        )
    if not trained:
        config = _config_of(model)
        sizes = {} if image_size is None else {"image_size": image_size}
        changes["vision_cfg"] = {**config["vision_cfg"], **(vision or {}), **sizes}
        changes["text_cfg"] = {**config["text_cfg"], **(text or {})}
        changes["embed_dim"] = config["embed_dim"] if embed_dim is None else embed_dim
    known = _pretrained_config(model, scheme, pretrained)
    if repository := _find_repository(model, scheme, known):
        say_lookup(repository, cache_dir=cache_dir)
    # Weights of OpenAI and MetaCLIP need QuickGELU, which architectures without "-quickgelu" in their name lack;
    # open_clip (3.3.0) only warns, and computes other embeddings than the weights were trained for.
    needs_quick_gelu = bool(known.get("quick_gelu"))
    parts = deepcopy(changes)
    if parts and text is NO_TEXT:
        parts["text_cfg"] |= NO_WORDS
    try:
        with quiet():
            built = open_clip.create_model(
                model,
                pretrained=pretrained,
                force_quick_gelu=needs_quick_gelu,
                force_image_size=image_size,
                force_patch_dropout=0.0,  # regions need every patch, also in training
                # Without this, open_clip continues with random weights if it finds none to load.
                require_pretrained=trained,
                # By default it loads weights for a text tower from transformers even when none are asked for.
                pretrained_text=False,
                cache_dir=cache_dir,
                # open_clip's default is the CPU, which would allocate weights even where models are only counted.
                device=torch.get_default_device(),
                **parts,
            )
            config = {**_config_of(model), **changes}
            if needs_quick_gelu:
                config["quick_gelu"] = True
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"open_clip model '{model}'{_tag(pretrained)}: {advice(scheme, pretrained, error)}") from error
    if embed_dim is not None and config["embed_dim"] != embed_dim:
        raise UserError(f"embed_dim: the trained weights of '{model}' have {config['embed_dim']} (got {embed_dim})")
    if trained and image_size is not None:
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": image_size}
    return built, config


def _pretrained_config(model: str, scheme: str | None, pretrained: str | None) -> Mapping[str, Any]:
    """Return what open_clip knows of a tag's weights; nothing of a file or a folder."""
    import open_clip

    return {} if scheme is not None or pretrained is None else open_clip.get_pretrained_cfg(model, pretrained)


def _find_repository(model: str, scheme: str | None, known: Mapping[str, Any]) -> str:
    """Return the hub repository that open_clip takes the weights from; "" where it asks no hub."""
    if scheme is not None:
        return model.partition(":")[2] if scheme == "hf-hub" else ""
    # OWNER/NAME/ or OWNER/NAME/FILE; a file of weights has no entry.
    return "/".join(str(known.get("hf_hub", "")).split("/")[:2])


def named(
    model: str,
    source: str | None,
    pretrained: str | None,
    *,
    revision: str | None,
    offline: bool,
    built: bool,
    cache_dir: str | None,
) -> tuple[str, str | None]:
    """Return open_clip's name of the model, and the commit it is pinned to; `built`: `source` is only a record."""
    if not isinstance(model, str):
        raise UserError(f"open_clip model: not a name (got {model!r:.60}); expected text")
    if source is None:
        if revision is not None and not built:
            raise UserError(f"revision of 'open_clip': has no effect without source: OWNER/NAME (got '{revision}')")
        return model, revision
    if pretrained is not None:
        raise UserError(
            f"'open_clip': source '{source}' has its own weights; leave pretrained out (got '{pretrained}')"
        )
    if built:
        return f"local-dir:{source}", revision
    checkpoint = fetch(source, revision=revision, offline=offline, field="source of 'open_clip'", cache_dir=cache_dir)
    if not (checkpoint.folder / "open_clip_config.json").is_file():
        raise UserError(f"{source}: not a checkpoint of open_clip: open_clip_config.json is missing")
    checkpoint.weights()
    return f"local-dir:{checkpoint.folder}", checkpoint.commit


def scale_of(built: Any) -> tuple[float | None, float | None]:
    """Return 1 / temperature and bias that were trained with the weights."""
    # On the meta device, where models are only counted, tensors have no values.
    if built.logit_scale.is_meta:
        return None, None
    bias = getattr(built, "logit_bias", None)
    return float(built.logit_scale.detach().exp()), None if bias is None else float(bias.detach())


def _config_of(model: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(model)
    assert config is not None, model
    return config


def _from_config(config: Mapping[str, Any]) -> Any:
    """Build an untrained model of a complete configuration."""
    # open_clip builds by name only: an architecture that every release has, with everything replaced.
    import open_clip

    parts = deepcopy(dict(config))
    custom_text = parts.pop("custom_text", False) or "hf_model_name" in parts["text_cfg"]
    # Towers of timm and transformers would fetch their own weights, which the model folder's replace anyway.
    parts["vision_cfg"] = {**parts["vision_cfg"], "patch_dropout": 0.0, "timm_model_pretrained": False}
    if "hf_model_name" in parts["text_cfg"]:
        parts["text_cfg"]["hf_model_pretrained"] = False
    with quiet():
        return open_clip.create_model(
            "ViT-B-32", force_custom_text=custom_text, device=torch.get_default_device(), **parts
        )


def _tag(pretrained: str | None) -> str:
    return f" with pretrained '{pretrained}'" if pretrained is not None else ""


def advice(scheme: str | None, pretrained: str | None, error: Exception) -> str:
    """Explain what the user can do about an error of open_clip, with its reason."""
    reason = shorten_reason(error, 300)
    if scheme == "local-dir":
        return f"the folder needs open_clip_config.json and a weights file ({reason})"
    if scheme == "hf-hub" or pretrained is not None:
        return (
            f"its files are neither cached nor within reach ({reason}); download them on a machine with a network, "
            "copy the folder here and give its path, or 'local-dir:FOLDER' where an encoder's model is named; without "
            "a network, the shipped 'small' embeds images"
        )
    return f"these settings make no model ({reason})"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip, which warns through the root logger that untrained weights are untrained.

    It also installs a handler, which is removed again. One thread at a time: of two that overlap, the later one would
    put back what the first had switched off.
    """
    with _QUIET:
        root, level = logging.getLogger(), logging.root.manager.disable
        handlers = list(root.handlers)
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                # A price needs shapes alone; torch warns once for each tensor that is not copied to the meta device.
                warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
                yield
        finally:
            logging.disable(level)
            root.handlers[:] = handlers


def tokenizer_of(
    model: str, text_config: Mapping[str, Any], *, length: int, cache_dir: str | None, folder: Path | None
) -> Any:
    """Open the configuration's tokenizer: open_clip's own needs no files, others are in `folder` or found by name."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    options = text_config.get("tokenizer_kwargs") or {}
    if folder is not None:
        mode = text_config.get("tokenizer_mode")
        return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
    known = text_config if ":" in model else (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    if known.get("hf_tokenizer_name") or (":" not in model and "siglip" in model.lower()):
        return open_clip.get_tokenizer(model, context_length=length, cache_dir=cache_dir)
    tokenizer = copy(_read_byte_pairs(length, json.dumps(known.get("tokenizer_kwargs") or {})))
    tokenizer.cache = _WordCache(tokenizer.cache)
    return tokenizer


@lru_cache(maxsize=8)
def _read_byte_pairs(length: int, options: str) -> Any:
    """Open open_clip's own tokenizer; to read its 48,894 byte pairs takes 0.1 s. No copy changes them."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=length, **json.loads(options))


class _WordCache(dict[str, str]):
    """The words that open_clip's byte pairs have split: theirs grows forever, in a server by the words of all clients.

    When it is full it takes no more. To drop a word would fail in another thread, which looks twice.
    """

    def __setitem__(self, word: str, pieces: str) -> None:
        if len(self) < _MAX_CACHED_WORDS:
            super().__setitem__(word, pieces)

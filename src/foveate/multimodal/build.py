"""Build the parts of a multimodal model from its settings; open a language model from elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from foveate.core.errors import UserError, choose
from foveate.language.lora import add_lora
from foveate.language.open import LanguageModel, open_language_model, read_language_config
from foveate.language.sparse import make_sparse
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.vision.connectors import Connector, PooledConnector, build_connector, connector_kinds
from foveate.vision.dual import DualConnector, DualTower
from foveate.vision.encoder import ImageEncoder
from foveate.vision.hidden_layer import build_tower
from foveate.vision.regions import RegionEncoder, build_region_encoder, region_kinds
from foveate.vision.registry import seeded

# Fields of configs by which transformers changes logits behind the head, as Gemma 2, Cohere and Granite do.
# `MultimodalModel.logits` calls the head alone and would leave that out.
_SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# Share of the identity in the product of value and output projections; see `start_copying`.
_COPYING = 0.3
# What transformers raises for wrong fields; its checks of types have a class of their own.
_UNUSABLE = (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError, StrictDataclassError)


def build_model(
    settings: MultimodalSettings,
    *,
    region_id: int,
    vocabulary: int = 0,
    language_model: Any = None,
    seed: int = 0,
) -> MultimodalModel:
    """Build an untrained model.

    Args:
        settings: of its parts.
        region_id: id of the token `<region>`.
        vocabulary: rows of the table of token embeddings of a new language model.
        language_model: of `open_source`, where the settings name one.
        seed: of the weights.

    Raises:
        UserError: a part cannot be built with these options.
    """
    if isinstance(settings.language, dict):
        language_model = build_language_model(settings.language, vocabulary=vocabulary, seed=seed + 1)
        if settings.experts is not None:
            make_sparse(language_model, settings.experts, seed=seed + 4)
    assert language_model is not None, "a source is opened by open_source"
    kind, out_width = settings.connector.get("kind"), int(language_model.config.hidden_size)
    tower, connector = build_vision(settings, out_width=out_width, seed=seed)
    region_encoder = None
    if settings.region_encoder is not None:
        behind = settings.region_map == "connector"
        complete = (
            isinstance(connector, PooledConnector) or connector.num_tokens == connector.grid[0] * connector.grid[1]
        )
        if (behind or settings.region_mean) and not complete:
            name, other = ("region_map", "region_map tower") if behind else ("region_mean", "region_mean false")
            raise UserError(
                f"field model.{name}: connector '{kind}' keeps {connector.num_tokens} tokens of a view; expected all, "
                f"or {other}"
            )
        width = out_width if behind else tower.width
        region_encoder = _build_regions(settings, width, out_width, seed=seed + 5)
    with seeded(seed + 3):
        return MultimodalModel(
            settings,
            tower=tower,
            connector=connector,
            language_model=language_model,
            region_id=region_id,
            region_encoder=region_encoder,
        )


def build_vision(settings: MultimodalSettings, *, out_width: int, seed: int = 0) -> tuple[ImageEncoder, Connector]:
    """Build the untrained tower and connector of a model, both of them twice where tiles have their own.

    Args:
        out_width: of the language model.
    """
    # A seed for each part: another connector leaves the start of the decoder as it is.
    tower = build_tower(settings.tower, seed=seed)
    options = dict(settings.connector)
    kind = choose(str(options.pop("kind", "")), connector_kinds(), "model.connector.kind")

    def connect(encoder: ImageEncoder, seed: int) -> Connector:
        return build_connector(kind, options, in_width=encoder.width, out_width=out_width, grid=encoder.grid, seed=seed)

    connector: Connector = connect(tower, seed + 2)
    if settings.tiles_tower is not None:
        tiles = build_tower(settings.tiles_tower, seed=seed + 6)
        connector = DualConnector(connect(tower, seed + 2), connect(tiles, seed + 7))
        adapters = settings.region_encoder is not None and settings.region_map == "tower"
        tower = DualTower(tower, tiles, adapters=adapters, seed=seed + 8)
    return tower, connector


def build_untrained(settings: MultimodalSettings, *, vocabulary: int) -> MultimodalModel:
    """Build a model whose values do not matter; a language model from elsewhere from its config alone.

    Args:
        vocabulary: rows of the table of token embeddings of a new language model.
    """
    # Nothing is tokenized for this model, so any id may represent `<region>`.
    if not isinstance(settings.language, SourceSettings):
        return build_model(settings, vocabulary=vocabulary, region_id=0)
    from transformers import AutoModelForCausalLM

    config = read_language_config(settings.language.source, revision=settings.language.revision)
    # `from_config` draws the weights from torch's global generator.
    with seeded(0):
        language_model = AutoModelForCausalLM.from_config(config)
    prepare_tuning(language_model, settings.language)
    return build_model(settings, region_id=0, language_model=language_model)


def _build_regions(settings: MultimodalSettings, width: int, out: int, *, seed: int) -> RegionEncoder:
    options = dict(settings.region_encoder or {})
    kind = choose(str(options.pop("kind", "")), region_kinds(), "model.region_encoder.kind")
    # RoI-Align samples a fixed grid; the others read the points that are drawn for each region.
    if kind != "roi":
        options["num_points"] = settings.region_points
    encoder = build_region_encoder(kind, options, width=width, out=out, seed=seed)
    if encoder.tokens_per_region != 1:
        raise UserError(
            f"field model.region_encoder: {encoder.tokens_per_region} tokens a region, where the text has one; "
            "expected side 1"
        )
    return encoder


def open_source(settings: SourceSettings, *, seed: int = 0) -> LanguageModel:
    """Open the language model of a source, ready to be tuned.

    Raises:
        UserError: see `open_language_model`; or a target of LoRA names no layer.
    """
    dtype = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    language = open_language_model(settings.source, chat=settings.chat, revision=settings.revision, dtype=dtype)
    prepare_tuning(language.model, settings, seed=seed)
    return language


def prepare_tuning(model: nn.Module, settings: SourceSettings, *, seed: int = 0) -> None:
    """Put LoRA beside the layers of a language model where the settings ask for it, in place."""
    scaled = [name for name in _SCALED_HEADS if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise UserError(
            f"field model.language: the head of {settings.source} scales its logits by {scaled[0]}, "
            "which is not supported"
        )
    if settings.tuning == "lora":
        add_lora(model, settings.lora, seed=seed)


def build_language_model(options: dict[str, Any], *, vocabulary: int, seed: int) -> Any:
    """Build an untrained causal language model of transformers from the fields of its config.

    Its embeddings have length 1, as the visual tokens have, and its attention begins by copying.

    Raises:
        UserError: transformers cannot build it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in options.items() if name != "model_type"}
    try:
        config = AutoConfig.for_model(options["model_type"], vocab_size=vocabulary, tie_word_embeddings=True, **fields)
        # The family's defaults are ids of its own vocabulary, where other tokens stand in this one.
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        with seeded(seed):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
            table = model.get_input_embeddings().weight
            nn.init.normal_(table, std=table.shape[1] ** -0.5)
            start_copying(model)
    except _UNUSABLE as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"field model.language: transformers cannot build it with these options ({why})") from error
    return model


@torch.no_grad()
def start_copying(language_model: Any) -> None:
    """Let each attention layer of a Llama-like model begin by passing on what it reads.

    The output projection times the value projection becomes a multiple of the identity, so that what a visual token
    shows, or what the question says, is proposed as the next token from the first step on. After the mimetic
    initialization of Trockman & Kolter 2023 (arXiv 2305.09828). Layers without square projections stay as they are.
    """
    for layer in language_model.modules():
        value, out = (getattr(getattr(layer, name, None), "weight", None) for name in ("v_proj", "o_proj"))
        if value is not None and out is not None and value.shape == out.shape and value.shape[0] == value.shape[1]:
            nn.init.orthogonal_(value, gain=_COPYING**0.5)
            # An orthogonal matrix times its transpose is the identity, here `_COPYING` times it.
            out.copy_(value.T)

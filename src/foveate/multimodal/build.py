"""Build the parts of a multimodal model from its settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from foveate.core.errors import UserError
from foveate.multimodal.model import MultimodalModel, start_copying
from foveate.multimodal.settings import MultimodalSettings
from foveate.vision.connectors import build_connector
from foveate.vision.hidden_layer import build_tower
from foveate.vision.registry import seeded

_UNUSABLE = (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError)


def build_model(settings: MultimodalSettings, *, vocabulary: int, region_id: int, seed: int = 0) -> MultimodalModel:
    """Build an untrained model.

    Args:
        settings: of its parts.
        vocabulary: rows of the table of token embeddings.
        region_id: id of the token `<region>`.
        seed: of the weights.

    Raises:
        UserError: a part cannot be built with these options.
    """
    tower = build_tower(settings.tower, seed=seed)
    language_model = build_language_model(settings.language, vocabulary=vocabulary, seed=seed + 1)
    kind, options = settings.connector["kind"], {k: v for k, v in settings.connector.items() if k != "kind"}
    connector = build_connector(
        kind,
        options,
        in_width=tower.width,
        out_width=int(language_model.config.hidden_size),
        grid=tower.grid,
        seed=seed + 2,
    )
    with seeded(seed + 3):
        return MultimodalModel(
            settings, tower=tower, connector=connector, language_model=language_model, region_id=region_id
        )


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

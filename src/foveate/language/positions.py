"""Positions that a language model can read, and how RoPE is stretched to more of them."""

from __future__ import annotations

from typing import Any

from foveate.core.errors import UserError


def find_context(model: Any) -> int | None:
    """Return the number of positions that a model can read; None where its configuration sets no limit."""
    return count_positions(model.config.get_text_config())


def count_positions(config: Any) -> int | None:
    """Return the number of positions that the text config of a model allows; None where it sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    # Of all kinds of RoPE, dynamic NTK alone leaves the length of training in the config and stretches it itself.
    return None if limit is None else int(limit * find_rope_factor(config))


def find_rope_factor(config: Any) -> float:
    """Return the factor of dynamic NTK scaling of a text config; 1 without."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope["factor"]) if rope.get("rope_type") == "dynamic" else 1.0


def scale_rope(config: Any, factor: float) -> None:
    """Set dynamic NTK scaling of RoPE in a text config; 1 leaves it as it is.

    Raises:
        UserError: the factor is below 1, or positions of the model are no plain RoPE.
    """
    if factor < 1:
        raise UserError(f"rope_factor: too small (got {factor}); expected at least 1")
    if factor == 1:
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        kind = rope.get("rope_type", "none")
        raise UserError(f"rope_factor: needs positions of plain RoPE (got {factor} with '{kind}'); leave it out")
    config.rope_parameters = {**rope, "rope_type": "dynamic", "factor": float(factor)}

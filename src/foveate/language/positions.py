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
    # Only dynamic NTK leaves the length of training in the config and stretches it itself.
    return None if limit is None else int(limit * find_rope_factor(config))


def find_rope_factor(config: Any) -> float:
    """Return the factor of dynamic NTK scaling of a text config; 1 without."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope["factor"]) if rope.get("rope_type") == "dynamic" else 1.0


def outgrows_training(config: Any, length: int) -> bool:
    """Return whether dynamic NTK scaling turns keys of a sequence of this length otherwise than shorter ones."""
    return find_rope_factor(config) > 1 and length > config.max_position_embeddings


def find_dynamic_rope(model: Any) -> list[Any]:
    """Find the modules of a model of transformers that scale RoPE by the length of what they read."""
    if find_rope_factor(model.config.get_text_config()) == 1:
        return []
    return [module for module in model.modules() if getattr(module, "rope_type", None) == "dynamic"]


def restore_rope(modules: list[Any]) -> None:
    """Give modules of `find_dynamic_rope` the frequencies of training, from which the next pass scales its own.

    transformers 5.24 restores them itself for sequences shorter than those of training, and scales them for sequences
    longer than any before: one in between would be read with the frequencies of the longest so far.
    """
    for module in modules:
        module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
        module.max_seq_len_cached = module.original_max_seq_len


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

"""Adapter folders of PEFT on disk: a config and pairs of low-rank matrices, written and read as PEFT does.

Adapters that change outputs in another way than a pair does are refused by the field that says so: reading the pairs
alone would give other outputs without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import UserError, nearest
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically
from foveate.core.model_folder import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT saves names as they are inside its own two wrappers.
_WRAPPERS = "base_model.model."
# Initializations of PEFT 0.21 that leave the weights beside the pairs as they are. The others subtract the first pair
# from them or quantize them, and most do so again whenever PEFT opens the adapter.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Those that PEFT converts to a plain LoRA.
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def write_peft_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the weights, named as in the network; write the config after them, so that no folder is half an adapter."""
    from safetensors.torch import save

    # safetensors refuses tensors that are not contiguous.
    prefixed = {f"{_WRAPPERS}{key}": value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_bytes_atomically(folder / WEIGHTS, save(prefixed, metadata={"format": "pt"}))


def write_peft_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config."""
    write_json_atomically(folder / CONFIG, dict(config))


def describe_ranks(
    ranks: Mapping[str, int], factors: Mapping[str, float], *, rank: int, factor: float
) -> dict[str, Any]:
    """Return PEFT's fields of rank and alpha, with a pattern for each module that differs from `rank` or `factor`.

    Args:
        ranks, factors: of each module, by its name in the network; the factor is alpha / rank.
    """
    other = [key for key in ranks if (ranks[key], factors[key]) != (rank, factor)]
    return {
        "r": rank,
        "lora_alpha": factor * rank,
        # PEFT reads the keys of patterns as regular expressions, so the dots must be escaped.
        "rank_pattern": {re.escape(key): ranks[key] for key in other},
        "alpha_pattern": {re.escape(key): factors[key] * ranks[key] for key in other},
    }


def exact_pattern(names: Iterable[str]) -> str:
    """Return a regular expression of exactly these names.

    PEFT matches lists by the ending of names, and so might match too much.
    """
    return "(" + "|".join(re.escape(name) for name in names) + ")"


def read_lora_config(folder: Path) -> dict[str, Any]:
    """Read the config of a LoRA adapter.

    Raises:
        UserError: another method of PEFT, an option that changes more than a low-rank matrix does, a dropout outside
            of 0 to 1, or patterns that are no regular expressions.
    """
    where = folder / CONFIG
    config = read_json(where)
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected a JSON object (got {type(config).__name__})")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{where}: field 'peft_type' must be 'LORA', the method of PEFT that can be read (got {kind!r})"
        )
    # Each of these adds to a pair or changes it: DoRA's magnitudes, trained biases, transposed weights.
    plain = {"use_dora": False, "bias": "none", "fan_in_fan_out": False, "lora_bias": False}
    for field, expected in plain.items():
        if config.get(field, expected) not in (expected, None):
            raise UserError(f"{where}: field '{field}' must be {expected!r} (got {config[field]!r})")
    for field in ("target_parameters", "trainable_token_indices", "layer_replication", "megatron_config"):
        if config.get(field):
            raise UserError(f"{where}: field '{field}' has no counterpart here (got {config[field]!r})")
    _check_initialization(config.get("init_lora_weights"), where)
    dropout = config.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{where}: field 'lora_dropout' must be a number from 0 to below 1 (got {dropout!r})")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{where}: field '{field}' must be an object (got {type(patterns).__name__})")
        for pattern in patterns:
            try:
                _compile_pattern(pattern)
            # The last two: nested too deep, or repeated too often.
            except (re.error, RecursionError, OverflowError) as error:
                raise UserError(
                    f"{where}: field '{field}' has the key {pattern[:80]!r}; expected a regular expression ({error})"
                ) from error
    return config


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a key of PEFT's patterns: it matches the end of a name, from a dot on."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _check_initialization(value: object, where: Path) -> None:
    name = value.lower() if isinstance(value, str) else value
    if (value is None or isinstance(value, bool | str)) and name in _INITIALIZATIONS:
        return
    advice = ""
    if isinstance(name, str) and name.startswith(_CONVERTIBLE):
        advice = (
            "; PEFT converts it to a plain LoRA: save_pretrained(FOLDER, path_initial_model_for_weight_conversion="
            "INITIAL), INITIAL being the adapter as it was before training"
        )
    raise UserError(
        f"{where}: field 'init_lora_weights' must be one of {', '.join(map(json.dumps, _INITIALIZATIONS))}, which "
        f"leave the network's own weights as they are (got {value!r}){advice}"
    )


def read_peft_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights, named as in the network that they were trained on.

    Raises:
        UserError: they are a pickle, or not finite.
    """
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"{folder / 'adapter_model.bin'}: a pickle, which may run code and is not read; save the adapter as "
            "safetensors"
        )
    tensors = read_tensors(folder / WEIGHTS)
    for key, value in tensors.items():
        # `read_tensors` accepts -inf, which masks contain but no trained matrix does.
        if not value.isfinite().all():
            raise UserError(f"{folder / WEIGHTS}: tensor '{key}' has values that are NaN or infinite")
    return {key.removeprefix(_WRAPPERS): value for key, value in tensors.items()}


def collect_pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module -> matrices A and B.

    Raises:
        UserError: a tensor is of no pair, or there are none.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key in tensors:
        name, separator, _ = key.partition(".lora_A.")
        # Pairs are collected at their A; a B is only checked for having one.
        if not separator:
            if ".lora_B." not in key or key.replace(".lora_B.", ".lora_A.") not in tensors:
                raise UserError(f"{folder / WEIGHTS}: tensor '{key}' is of no pair lora_A and lora_B")
            continue
        other = key.replace(".lora_A.", ".lora_B.")
        if other not in tensors:
            raise UserError(f"{folder / WEIGHTS}: tensor '{other}' is missing")
        pairs[name] = (tensors[key], tensors[other])
    if not pairs:
        raise UserError(f"{folder / WEIGHTS}: it has no tensors of LoRA")
    return pairs


def match_modules(
    keys: Sequence[str], names: Collection[str], folder: Path, *, prefixes: Iterable[str] = ("",), network: str
) -> dict[str, str]:
    """Return the network's own name of each module that PEFT names in the class that it was trained on.

    Args:
        keys: names in the adapter. names: of the network's modules.
        prefixes: of names in this network that those of the adapter may lack.
        network: what the network is, for the error.

    Raises:
        UserError: the network has no such module; the nearest is named.
    """
    known, prefixes = set(names), tuple(prefixes)
    first = keys[0].split(".")
    # The same part may stand alone or in a model: the prefix of the one is taken off, that of the other put in front.
    for cut in range(len(first)):
        off = ".".join(first[:cut]) + ("." if cut else "")
        for prefix in prefixes:
            moved = {key: prefix + key.removeprefix(off) for key in keys if key.startswith(off)}
            if len(moved) == len(keys) and known.issuperset(moved.values()):
                return moved
    missing = next((key for key in keys if key not in known), keys[0])
    raise UserError(f"{folder / WEIGHTS}: a {network} has no module '{missing}'{nearest(missing, known)}")


def lora_factor(config: Mapping[str, Any], key: str, rank: int, folder: Path) -> float:
    """Return the factor of a pair: alpha / r, or alpha / sqrt(r), alpha by the pattern that the name ends in.

    Raises:
        UserError: alpha is not above 0.
    """
    patterns = config.get("alpha_pattern") or {}
    # As in PEFT: the first pattern that matches the end of the name, in whole dotted parts.
    matches = (pattern for pattern in patterns if _compile_pattern(pattern).match(key))
    alpha = patterns.get(next(matches, None), config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(f"{folder / CONFIG}: field 'lora_alpha' must be a number above 0 (got {alpha!r})")
    # Rank-stabilized LoRA (arXiv 2312.03732): with alpha / r the updates of high ranks would shrink.
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_shape(expected: Sequence[int], actual: Sequence[int], key: str, folder: Path) -> None:
    """Raise UserError unless a tensor has the expected shape."""
    if tuple(expected) != tuple(actual):
        raise UserError(f"{folder / WEIGHTS}: tensor '{key}' has sizes {list(actual)}; expected {list(expected)}")

"""Texts of strategies: the paper's strings, official operators and names of strategies, to settings and back.

slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4
spatial_1d_avg_pool
interleaved
"""

from __future__ import annotations

import re
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.video.layout import OPERATORS
from foveate.video.strategies import Strategy, build_strategy, strategy_kinds

EXAMPLE = "slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4"
# Lengths are bounded, for Python refuses to read integers of thousands of digits.
_STRICT = re.compile(r"slowfast-slow_([1-9]\d{0,9})frms_(\w+)-fast_([1-9]\d{0,9})x([1-9]\d{0,9})", re.ASCII)
# The official pattern: digits of any script, zeros, and a newline before the end.
_COMPATIBLE = re.compile(r"slowfast-slow_(\d{1,99})frms_(\w+)-fast_(\d{1,99})x(\d{1,99})\n?")
# Without aggregation the official code reads the first frame alone, without a word.
_NO_AGGREGATION = ("", "none", "false")


def parse_how(text: str, *, compat: bool = False, **options: Any) -> Strategy:
    """Turn the name of a strategy, the paper's string or an official operator into settings.

    Args:
        text: such as "interleaved", "slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4" or "spatial_1d_avg_pool".
        compat: see `parse_aggregation`.
        options: fields of the strategy, which replace those of the text.

    Raises:
        UserError: neither of the three, or a wrong option; with the valid form and the nearest match.

    >>> parse_how("slowfast-slow_8frms_concat-fast_2x4").count_tokens(50, 576)
    {'slow': 4608, 'fast': 400}
    >>> parse_how("fast", fast="2x2").count_tokens(10, 64)
    {'fast': 40}
    """
    if text not in strategy_kinds():
        how = parse_aggregation(text, compat=compat)
        text, options = how.kind, how.model_dump(exclude_unset=True) | options
    return build_strategy(text, options)


def parse_aggregation(text: str, *, compat: bool = False) -> Strategy:
    """Turn the paper's string, or an official operator for all frames, into settings.

    Args:
        compat: also accept what the official pattern does: no slow frames, an empty fast grid, leading zeros, digits of
            other scripts, a newline at the end.

    Raises:
        UserError: the text is no such string; with the valid form and the nearest match.
    """
    match = (_COMPATIBLE if compat else _STRICT).fullmatch(text)
    if match is not None and match[2] in OPERATORS:
        slow, rows, columns = (int(match[group]) for group in (1, 3, 4))
        # In an official string an empty grid, accepted with `compat`, means that there is no fast path.
        fast = (rows, columns) if rows * columns else None
        return build_strategy("slowfast", {"slow": slow, "slow_pool": match[2], "fast": fast})
    if text == "temporal_global_pool":
        return build_strategy("mean", {})
    if text in OPERATORS:
        return build_strategy("concat", {"pool": text})
    raise UserError(_explain(text, match))


def format_aggregation(how: Strategy) -> str:
    """Write settings as the paper's string, which `parse_aggregation(text, compat=True)` reads back.

    Which frames are sampled and chosen is not in it: it says how they are pooled.

    Raises:
        UserError: the strategy or an option of it cannot be written so.

    >>> format_aggregation(parse_how("slowfast", slow=8, fast="2x4"))
    'slowfast-slow_8frms_spatial_1d_max_pool-fast_2x4'
    """
    options = how.model_dump()
    if how.kind == "slowfast":
        rows, columns = options["fast"] or (0, 0)
        text = f"slowfast-slow_{options['slow']}frms_{options['slow_pool']}-fast_{rows}x{columns}"
    elif how.kind in ("concat", "mean"):
        text = options.get("pool", "temporal_global_pool")
    else:
        raise UserError(f"how: strategy '{how.kind}' has no string in the paper; expected slowfast, concat or mean")
    # Parsed again, so that an option that the string cannot express is refused instead of lost.
    same = parse_aggregation(text, compat=True).model_dump()
    for name, value in options.items():
        if name not in ("frames", "choose") and same.get(name) != value:
            raise UserError(f"{name}: no place in '{text}' (got {value}); expected {same.get(name)}")
    return text


def _explain(text: str, match: re.Match[str] | None) -> str:
    """Say what is wrong with a text."""
    if text.strip().lower() in _NO_AGGREGATION:
        return f"how: no aggregation (got '{text}'); expected 'concat' with frames=1 for one frame, or a strategy"
    if match is not None:
        expected = f"expected one of {', '.join(OPERATORS)}{nearest(match[2], OPERATORS)}"
        return f"how '{text:.100}': unknown operator '{match[2]:.60}'; {expected}"
    # The two mistakes that are made most: the underscore of the official file names, and a capital letter.
    likely = re.sub(r"_fast_", "-fast_", text.strip().lower())
    if _STRICT.fullmatch(likely):
        hint = f". Did you mean '{likely}'?"
    elif (compatible := _COMPATIBLE.fullmatch(text)) and not all(int(compatible[group]) for group in (1, 3, 4)):
        hint = "; for no slow frames pass slow=0 (--slow 0), for no fast path fast=None (--fast none)"
    else:
        hint = nearest(text, [*strategy_kinds(), *OPERATORS, EXAMPLE])
    return f"how: not a strategy (got '{text:.100}'); expected {EXAMPLE} or one of {', '.join(strategy_kinds())}{hint}"

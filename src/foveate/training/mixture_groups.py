"""Mixture of data groups: by alpha and w (MM1.5), or by multipliers of their sizes (Ferret).

Single-image groups have a weight `alpha` relative to the group "general"; `w` divides the samples over single-image,
multi-image and text-only data. `foveate.training.order.MixtureOrder` draws by the weights that result.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings
from foveate.training.loader import Source
from foveate.training.order import Draw, largest_remainders

GENERAL, MULTI_IMAGE, TEXT = "general", "multi-image", "text"
# Alpha weighs single-image groups against `general`; these two have their own weights in w.
_OUTSIDE_ALPHA = (MULTI_IMAGE, TEXT)


class GroupMixture(Settings):
    """Weights of data groups; the defaults are those of MM1.5's final recipe."""

    # The paper prints shares and not text-rich's alpha: any value from 3.296 to 3.311 gives them, 3.29 does not.
    alpha: dict[str, float] = Field(
        default={"general": 1, "text-rich": 3.3, "refer-ground": 2, "math": 0.5, "code": 0.2, "science": 0.1},
        description="weight of each single-image group relative to general; 0 leaves a group out",
    )
    w: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1),
        description="weights of single-image, multi-image and text-only data, up to a common factor",
    )
    draw: Draw = Field(
        default="multinomial",
        description="multinomial = every sample on its own; even = spread evenly; fixed = equal counts in all batches",
    )
    max_passes: float = Field(
        default=4, gt=0, description="passes over a group's data in a training from which a warning is given"
    )

    def shares(self) -> dict[str, float]:
        """Compute the share of each group in the whole mixture; see `mixture_shares`."""
        return mixture_shares(self.alpha, w=self.w)


@dataclass(frozen=True)
class GroupPlan:
    """Draws from one group in a training.

    Attributes:
        size: samples that the group has.
        share: of all draws.
        draws: expected number of draws.
        passes: draws over size; 0 where nothing is drawn.
    """

    name: str
    size: int
    share: float
    draws: float
    passes: float


def normalize_weights(weights: Mapping[str, float], *, what: str = "weight") -> dict[str, float]:
    """Divide weights by their sum.

    Raises:
        UserError: a weight that is negative or no finite number, or a sum of 0.
    """
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise UserError(f"{what} of '{name}': not a weight (got {weight!r}); expected a number >= 0")
    # Exactly rounded, so that the sum does not depend on the order of the groups.
    total = math.fsum(weights.values())
    if not total > 0:
        raise UserError(f"{what}: all are 0 (got {', '.join(weights) or 'none'}); expected at least one above 0")
    return {name: weight / total for name, weight in weights.items()}


def mixture_shares(alpha: Mapping[str, float], *, w: Sequence[float]) -> dict[str, float]:
    """Compute the share of every group in the whole mixture: w_single * alpha_c / sum(alpha) for single-image groups.

    Args:
        alpha: weight of each single-image group relative to `general`, which must be there and above 0.
        w: weights of single-image, multi-image and text-only data; they need not sum to 1.

    Returns:
        Group -> share in the order of `alpha`, then `multi-image` and `text`; the sum is 1.

    Source: MM1.5 (arXiv 2409.20566), section on data mixtures.

    Raises:
        UserError: a negative weight, `general` absent or 0, a group of `w` in `alpha`.

    >>> shares = mixture_shares({"general": 1, "text-rich": 3}, w=(0.8, 0.1, 0.1))
    >>> {name: round(share, 3) for name, share in shares.items()}
    {'general': 0.2, 'text-rich': 0.6, 'multi-image': 0.1, 'text': 0.1}
    """
    if len(w) != 3:
        raise UserError(f"w: expected three weights, of single-image, multi-image and text-only data (got {list(w)})")
    for name in _OUTSIDE_ALPHA:
        if name in alpha:
            raise UserError(f"alpha of '{name}': its weight is part of w; expected single-image groups only")
    if GENERAL not in alpha:
        raise UserError(f"alpha: '{GENERAL}' is absent (got {', '.join(alpha) or 'none'}){nearest(GENERAL, alpha)}")
    in_single = normalize_weights(alpha, what="alpha")
    # Compare only now: the line above has refused weights that are not numbers and cannot be compared.
    if not alpha[GENERAL] > 0:
        raise UserError(f"alpha of '{GENERAL}': the others are relative to it (got {alpha[GENERAL]}); expected > 0")
    parts = normalize_weights(dict(zip(("single-image", *_OUTSIDE_ALPHA), w, strict=True)), what="w")
    single = parts.pop("single-image")
    return {name: single * share for name, share in in_single.items()} | parts


def solve_weights(shares: Mapping[str, float]) -> tuple[dict[str, float], tuple[float, float, float]]:
    """Find the alpha and w that give these shares of the whole mixture; the inverse of `mixture_shares`.

    Raises:
        UserError: as `normalize_weights`, or a share of `general` that is absent or 0.
    """
    normalized = normalize_weights(shares, what="share")
    multi_image, text = (normalized.pop(name, 0.0) for name in _OUTSIDE_ALPHA)
    general = normalized.get(GENERAL, 0.0)
    if not general > 0:
        raise UserError(f"share of '{GENERAL}': alpha is relative to it (got {general}); expected > 0")
    alpha = {name: share / general for name, share in normalized.items()}
    return alpha, (math.fsum(normalized.values()), multi_image, text)


def batch_counts(shares: Mapping[str, float], *, batch_size: int) -> dict[str, int]:
    """Round shares to whole samples of a batch by largest remainders; ties go to the group that is listed first."""
    return dict(zip(shares, largest_remainders(list(shares.values()), batch_size), strict=True))


def check_groups(mixture: GroupMixture, sizes: Mapping[str, int], *, batch_size: int) -> dict[str, float]:
    """Return the share of each group as it is drawn; refuse data that cannot meet one.

    Args:
        sizes: samples of each group.

    Raises:
        UserError: a group with a share and no samples, samples of a group without a weight, or, with fixed counts, a
            group of which no batch gets a sample.
    """
    shares = mixture.shares()
    for name, size in sizes.items():
        if size and name not in shares:
            raise UserError(
                f"group '{name}': has {size:,} samples and no alpha; expected alpha.{name} (0 leaves it out)"
                f"{nearest(name, shares)}"
            )
    for name, share in shares.items():
        if share > 0 and not sizes.get(name):
            raise UserError(
                f"group '{name}': the data cannot meet its share of {share:.1%} (got 0 samples); expected data of this "
                f"group or a weight of 0{nearest(name, [group for group in sizes if group not in shares])}"
            )
    if mixture.draw == "fixed":
        counts = batch_counts(shares, batch_size=batch_size)
        for name, share in shares.items():
            if share > 0 and counts[name] == 0:
                raise UserError(
                    f"group '{name}': its share of {share:.2%} is no sample of a batch of {batch_size}; expected "
                    f"draw=multinomial or a batch_size of about {math.ceil(1 / share)}"
                )
        # Batches are drawn by these rounded counts, so plans and warnings must use them too.
        return {name: count / batch_size for name, count in counts.items()}
    return shares


def plan_groups(mixture: GroupMixture, sizes: Mapping[str, int], *, samples: int, batch_size: int) -> list[GroupPlan]:
    """Compute what a training draws from each group, and warn where it repeats one often.

    Args:
        sizes: samples of each group.
        samples: of the whole training: steps times the mean size of a batch.

    Raises:
        UserError: see `check_groups`.
    """
    shares = check_groups(mixture, sizes, batch_size=batch_size)
    plans = []
    for name, share in shares.items():
        size = sizes.get(name, 0)
        draws = share * samples
        plans.append(GroupPlan(name, size, share, draws, draws / size if size and draws else 0.0))
        if plans[-1].passes > mixture.max_passes:
            warnings.warn(
                f"group '{name}': a share of {share:.1%} of {samples:,} samples passes {plans[-1].passes:.1f} times "
                f"over its {size:,} samples; more data or a smaller weight would repeat less",
                stacklevel=2,
            )
    return plans


def multiply_rows(rows_N: ArrayLike, multiplier: float, *, seed: int, name: str = "") -> NDArray[np.int64]:
    """Repeat rows: whole copies of all of them, then for the fraction rows that are drawn with replacement.

    The draw is part of the list: with a multiplier below 1 an epoch has the same rows every time, and others never.

    Args:
        name: of the group; groups draw on their own.

    Source: behavior of ferret/train/train.py of apple/ml-ferret at 3c9e5c9 (data multipliers).

    >>> multiply_rows([4, 7], 2.5, seed=0)[:4].tolist(), len(multiply_rows([4, 7], 2.5, seed=0))
    ([4, 7, 4, 7], 5)
    """
    rows = np.asarray(rows_N, dtype=np.int64)
    copies = int(multiplier)
    # Round in floating point as published: 100 rows times 2.37 are 238, for 2.37 - 2 is slightly more than .37.
    num_drawn = math.ceil(len(rows) * (multiplier - copies))
    drawn = seeds.generator("multiplier", name, seed).integers(0, max(len(rows), 1), num_drawn)
    return np.concatenate([np.tile(rows, copies), rows[drawn]])


def weigh_sources(groups: Mapping[str, Sequence[Source]], mixture: GroupMixture) -> list[Source]:
    """Give each source its share of the whole mixture as weight; inside a group in proportion to the number of rows.

    Sources of groups with weight 0 are left out. Check the sizes with `check_groups` first.
    """
    shares = mixture.shares()
    weighted = []
    for group, sources in groups.items():
        rows = sum(len(source.rows) for source in sources)
        if shares[group] > 0:
            weighted += [replace(source, weight=shares[group] * len(source.rows) / rows) for source in sources]
    return weighted

"""Choose how gamma is estimated where the user does not say: by the numbers of classes and by what is at hand."""

from __future__ import annotations

from collections.abc import Collection

# The share of seen among seen and absent classes at which the order of the methods changes, measured in 26 cases
# (docs/studies/calibration.md). Below it the best of few seen logits says little beside the best of many absent ones,
# so that the best gap is too small; above it PCV, whose models saw half as many classes, goes too far.
FEW_SEEN = 1 / 3


def choose_method(num_seen: int, num_absent: int, available: Collection[str]) -> tuple[str, str]:
    """Return the method to use and the reason for it.

    Args:
        num_seen: number of classes of the fine-tuning data.
        num_absent: number of classes that gamma shifts.
        available: methods for which there are data, of "alg", "best_gap" and "pcv"; at least one.
    """
    if len(available) == 1:
        return next(iter(available)), "the data allow no other method"
    few = num_seen < FEW_SEEN * (num_seen + num_absent)
    counts = f"{num_seen} of {num_seen + num_absent} classes are seen"
    if few and "pcv" in available:
        return "pcv", f"{counts}: below a third PCV gained most in the study"
    if few:
        return "alg", f"{counts}: below a third ALG is the safest without trainings; in the study PCV gained more"
    if "best_gap" in available:
        return (
            "best_gap",
            f"{counts}: from a third on the best gap gained more than ALG in the study, and was safer than PCV",
        )
    return next(method for method in ("alg", "pcv") if method in available), f"{counts}, and there is no best gap"

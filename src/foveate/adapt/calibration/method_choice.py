"""Choose how gamma is estimated where the user does not say: by the numbers of classes and by what is at hand."""

from __future__ import annotations

from collections.abc import Collection

# Below this share of seen among seen and absent classes ALG was as good as the best gap or better, from it on the best
# gap was (docs/studies/calibration.md): the largest of few seen logits says little beside the largest of many absent.
MIN_SHARE_FOR_BEST_GAP = 1 / 3


def choose_method(num_seen: int, num_absent: int, available: Collection[str]) -> tuple[str, str]:
    """Return the method to use and the reason for it.

    PCV is the choice only where nothing else is at hand: it costs three trainings, and in the study it lowered accuracy
    over all classes where the free methods did not.

    Args:
        num_seen: number of classes of the fine-tuning data.
        num_absent: number of classes that gamma shifts.
        available: methods for which there are data, of "alg", "best_gap" and "pcv"; at least one.
    """
    free = [method for method in ("alg", "best_gap") if method in available]
    if not free:
        return "pcv", "there are pseudo runs, and no logits of the fine-tuning data"
    counts = f"{num_seen} of {num_seen + num_absent} classes are seen"
    if len(free) == 1:
        return free[0], "the data allow no other method without trainings"
    if num_seen >= MIN_SHARE_FOR_BEST_GAP * (num_seen + num_absent):
        return "best_gap", f"{counts}: from a third on the best gap gained at least what ALG did in the study"
    return "alg", f"{counts}: below a third ALG gained at least what the best gap did in the study"

"""Learning-rate schedules as pure functions: step (from 0) -> factor of the peak learning rate.

They are evaluated once a step on every rank. Nothing is stepped, so resuming needs no state and nothing can be stepped
twice.
"""

from __future__ import annotations

import math

from foveate.training.settings import TrainingSettings


def warmup(step: int, *, warmup_steps: int) -> float:
    """Rise linearly from 1/warmup_steps to 1 over the first `warmup_steps` steps, then stay at 1."""
    # Warmup starts above 0, because a step at rate 0 would change nothing.
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def constant(step: int, *, warmup_steps: int) -> float:
    """Stay at 1 after the warm-up."""
    return warmup(step, warmup_steps=warmup_steps)


def cosine(step: int, *, steps: int, warmup_steps: int, final: float = 0.0) -> float:
    """Fall as half a cosine from 1 to `final` after the warm-up (Loshchilov and Hutter 2017, eq 5, one cycle)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step: int, *, steps: int, warmup_steps: int, decay_fraction: float, final: float = 0.0) -> float:
    """Warm up, stay at 1, then fall linearly to `final` over the last `decay_fraction` of all steps.

    Hu et al. 2024 (MiniCPM, section 4) name it; the linear form of the decay is Hägele et al. 2024.
    """
    if step < warmup_steps:
        return warmup(step, warmup_steps=warmup_steps)
    decay_steps = max(1, min(round(decay_fraction * steps), steps - warmup_steps))
    progress = min(1.0, max(0.0, (step - (steps - decay_steps)) / decay_steps))
    return 1 - (1 - final) * progress


def learning_rate_factor(step: int, *, settings: TrainingSettings) -> float:
    """Return the factor of the schedule that `settings` names, at `step`, counted from 0."""
    if settings.schedule == "constant":
        return constant(step, warmup_steps=settings.warmup_steps)
    final = settings.final_learning_rate_fraction
    if settings.schedule == "cosine":
        return cosine(step, steps=settings.steps, warmup_steps=settings.warmup_steps, final=final)
    return wsd(
        step,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        decay_fraction=settings.decay_fraction,
        final=final,
    )

"""Decision stages: a stage is a row in the `STAGES` of a module of this package, run in the sequence of their order.

An option without effect warns (`warn_idle`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foveate.core.progress import say
from foveate.core.recipes import Settings


@dataclass(frozen=True)
class StageKind:
    """A stage by its name in `STAGES`, which is also its name in settings, options and traces.

    Attributes:
        order: place among the stages, which run from the lowest to the highest.
        settings: class of its options; the command line is generated from its fields.
        prepare: `prepare(settings, others, classes, taxa)` reads what the settings name and returns a function from
            rows to rows, or None if the stage is off; `others` are the settings of all stages by name.
    """

    order: int
    settings: type[Settings]
    prepare: Callable[[Any, Any, Any, Any], Any]


def warn_idle(settings: Settings, *names: str, needs: str) -> None:
    """Warn about fields that are set but have no effect.

    Args:
        needs: what is missing for them to have an effect.
    """
    for name in names:
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            say(f"{name.replace('_', ' ')} {value} has no effect without {needs}")

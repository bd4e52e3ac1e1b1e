"""Decision stages: a stage is a module with ORDER, `StageSettings` and `prepare`, run in the sequence of ORDER.

`prepare(settings, others, classes, taxa)` reads what the settings name and returns a function from rows to rows, or
None if the stage is off; `others` are the settings of all stages by name. An option without effect warns (`warn_idle`).
"""

from __future__ import annotations

from foveate.core.progress import say
from foveate.core.recipes import Settings


def warn_idle(settings: Settings, *names: str, needs: str) -> None:
    """Warn about fields that are set but have no effect.

    Args:
        needs: what is missing for them to have an effect.
    """
    for name in names:
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            say(f"{name.replace('_', ' ')} {value} has no effect without {needs}")

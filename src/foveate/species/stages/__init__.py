"""Decision stages: a stage is a row in the `STAGES` of a module of this package, run in the sequence of their order.

An option without effect warns (`warn_idle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        options: field -> option of the command line.
        off: field -> value; a stage whose fields have all these values changes nothing.
        title: of the stage on pages; its name by default.
        yields: whether it is off where SpeciesNet's rules decide.
    """

    order: int
    settings: type[Settings]
    prepare: Callable[[Any, Any, Any, Any], Any]
    options: Mapping[str, str]
    off: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    yields: bool = False

    def is_used(self, values: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether stored settings change anything: the `values` of this stage beside those of all `stages`."""
        is_off = bool(self.off) and all(values.get(name) in (value, None) for name, value in self.off.items())
        return not is_off and not (self.yields and stages.get("rules", {}).get("rules", "none") != "none")


def warn_idle(settings: Settings, *names: str, needs: str) -> None:
    """Warn about fields that are set but have no effect.

    Args:
        needs: what is missing for them to have an effect.
    """
    for name in names:
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            say(f"{name.replace('_', ' ')} {value} has no effect without {needs}")

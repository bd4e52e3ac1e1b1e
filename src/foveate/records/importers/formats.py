"""The formats that can be imported, found by name: every module of this package that has a `FORMAT`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError, nearest
from foveate.records.import_summary import ImportSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format that can be imported.

    `run(source, target, **options)` imports, `recognize(source)` says what of this format was found at a
    source, or None. `options` are the keywords that `run` takes besides the shared ones, `refusals` says why
    it does not take another one. A `fallback` is chosen where no other format is recognized.
    """

    name: str
    run: Callable[..., ImportSummary]
    recognize: Callable[[str], str | None]
    options: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False


def formats() -> dict[str, Format]:
    """All formats by their names."""
    package = importlib.import_module("foveate.records.importers")
    modules = [
        importlib.import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
    ]
    found = [module.FORMAT for module in modules if isinstance(getattr(module, "FORMAT", None), Format)]
    return {one.name: one for one in sorted(found, key=lambda one: one.name)}


def recognized_format(source: str, *, others: tuple[str, ...] = ()) -> tuple[Format, str]:
    """The one format of `source`, and what it was recognized by.

    Raises:
        UserError: nothing is there (`others` are further names to suggest), no format is recognized, or more
            than one.
    """
    known = formats()
    found = {name: what for name, one in known.items() if (what := one.recognize(source)) is not None}
    clear = {name: what for name, what in found.items() if not known[name].fallback} or found
    if len(clear) > 1:
        seen = " or ".join(f"{name} ({what})" for name, what in clear.items())
        raise UserError(f"{source} may be {seen}: choose one with --format")
    for name, what in clear.items():
        return known[name], what
    if Path(source).exists():
        allowed = ", ".join(known)
        raise UserError(f"{source}: the format is not recognized: name it with --format, allowed are {allowed}")
    siblings = Path(source).parent.glob("*") if Path(source).parent.is_dir() else ()
    candidates = [*others, *(str(one) for one in siblings)][:500]
    raise UserError(f"{source}: neither a file, a folder nor a built-in collection{nearest(source, candidates)}")

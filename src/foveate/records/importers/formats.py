"""Import formats by name: every module of this package that has a `FORMAT` is one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError, nearest
from foveate.core.plugins import load_all
from foveate.records.import_summary import ImportSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One import format.

    Args:
        run: imports, called as `run(source, target, **options)`.
        recognize: returns what of this format is at a source ("3 tars"), or None.
        options: keywords that `run` takes besides `SharedOptions`, of the fields of `settings.FormatOptions`.
        refusals: keyword -> why this format does not take it, for the error.
        fallback: chosen only where no other format is recognized.
        by_option: an option that only such a source needs: given, it is evidence of this format
            unless a recognized one takes it, too.
        survey: images come from camera traps; near-duplicates stay.
    """

    name: str
    run: Callable[..., ImportSummary]
    recognize: Callable[[str], str | None]
    options: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False
    by_option: str = ""
    survey: bool = False


def _flag(entry: Format) -> str:
    return "--" + entry.by_option.replace("_", "-")


def load_formats() -> dict[str, Format]:
    """Load all import formats; return {name: format}, sorted by name."""
    formats: list[Format] = list(load_all("foveate.records.importers", "FORMAT").values())
    return {entry.name: entry for entry in sorted(formats, key=lambda entry: entry.name)}


def detect_format(source: str, *, others: tuple[str, ...] = (), options: Collection[str] = ()) -> tuple[Format, str]:
    """Detect the format of a source; return it with the evidence ("3 tars").

    Args:
        others: names besides files that the source could have been, for the nearest match.
        options: names of options that the user gave; see `Format.by_option`.

    Raises:
        UserError: the source does not exist, or its format is unknown or ambiguous.
    """
    formats = load_formats()
    matches = {name: evidence for name, entry in formats.items() if (evidence := entry.recognize(source)) is not None}
    if Path(source).exists():
        recognized_options = {option for name in matches for option in formats[name].options}
        # An option is evidence only where no recognized format takes it: COCO Camera Traps have --deployments, too.
        matches |= {
            name: _flag(entry)
            for name, entry in formats.items()
            if entry.by_option in options and entry.by_option not in recognized_options
        }
    clear = {name: evidence for name, evidence in matches.items() if not formats[name].fallback} or matches
    if len(clear) > 1:
        candidates = " or ".join(f"{name} ({evidence})" for name, evidence in clear.items())
        raise UserError(f"{source}: ambiguous format ({candidates}); choose one with --format")
    for name, evidence in clear.items():
        return formats[name], evidence
    if Path(source).exists():
        raise UserError(f"{source}: unknown format; choose one with --format: {', '.join(formats)}")
    siblings = Path(source).parent.glob("*") if Path(source).parent.is_dir() else ()
    names = [*others, *map(str, siblings)][:500]  # a folder of millions must not make the error slow
    raise UserError(f"{source}: no such file, folder or built-in collection{nearest(source, names)}")

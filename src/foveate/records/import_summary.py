"""Counts of an import, which add up to the number of samples in the source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_MAX_KINDS = 8  # kinds of ignored files in one line


@dataclass(slots=True)
class ImportSummary:
    """Counts of one import.

    Args:
        quarantined: findings of this run by "subject: reason", including those that an earlier run recorded.
        texts_changed, files_replaced: images of which sidecars, or the bytes, differ from an earlier import.
        gone: keys of images whose files are gone from the source.
        renamed: those of `gone` whose bytes a file of the source has under another name.
        updated: whether changes were taken.
        ignored: kind -> number of files that are not used.
        further: counts that only some formats have, by description.
        notes: sentences for the user.
        away: samples at the end of the source that could not be reached, all in a row.
        first_away: why the first of them could not.
    """

    source: str = ""
    imported: int = 0
    existing: int = 0
    removed_earlier: int = 0
    captions_imported: int = 0
    regions_imported: int = 0
    regions_clipped: int = 0
    texts_cleaned: int = 0
    animated: int = 0
    without_text: int = 0
    ignored_files: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    texts_changed: int = 0
    files_replaced: int = 0
    gone: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    updated: bool = False
    quarantined: Counter[str] = field(default_factory=Counter)
    further: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    away: int = 0
    first_away: str = ""

    @property
    def images_quarantined(self) -> int:
        """Findings about whole images."""
        return sum(count for name, count in self.quarantined.items() if name.startswith("image: "))

    @property
    def regions_quarantined(self) -> int:
        """Findings about single regions."""
        return sum(count for name, count in self.quarantined.items() if name.startswith("region: "))

    def as_dict(self) -> dict[str, object]:
        """Return all counts as JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in values.items()
        }

    def lines(self) -> list[str]:
        """Format the counts as lines of a table, without zeros except for the number of images."""
        counts = [
            (self.imported, "images imported"),
            (self.existing, "images already in the collection"),
            (self.removed_earlier, "images skipped, because they were removed earlier"),
            (self.captions_imported, "captions imported"),
            (self.regions_imported, "regions imported"),
            (self.regions_clipped, "regions clipped to their image"),
            (self.texts_cleaned, "texts with control characters removed"),
            (self.animated, "animated images, of which the first frame is used"),
            (self.without_text, "images without any text"),
            (self.ignored_files, f"other files ignored{self._format_ignored()}"),
            # Changes that were not taken are on a line of their own, with the option that takes them.
            (self.texts_changed if self.updated else 0, "images with changed texts, which were taken"),
            (self.files_replaced if self.updated else 0, "images with other bytes, which were taken"),
        ]
        # The number of imported images comes first and is shown even as 0, so that the table is never empty.
        rows = [(count, what) for number, (count, what) in enumerate(counts) if count or number == 0]
        rows += sorted((count, what) for what, count in self.further.items())
        rows += [(count, f"quarantined: {what}") for what, count in sorted(self.quarantined.items())]
        width = max(len(f"{count:,}") for count, _ in rows)
        return [f"{count:>{width},} {what}" for count, what in rows] + self._format_changes() + self.notes

    def _format_ignored(self) -> str:
        """Format the kinds of ignored files, the most frequent first; "" if they are not known."""
        kinds = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        more = ", ..." if len(kinds) > _MAX_KINDS else ""
        return f" ({', '.join(f'{kind} {count:,}' for kind, count in kinds[:_MAX_KINDS])}{more})" if kinds else ""

    def _format_changes(self) -> list[str]:
        """Return the line on changes that the run left as they are, if there are any."""
        counts = (
            (0 if self.updated else self.texts_changed, "text changed", "texts changed"),
            (0 if self.updated else self.files_replaced, "file replaced", "files replaced"),
            (len(self.gone), "gone", "gone"),
            (len(self.renamed), "of these renamed", "of these renamed"),
        )
        parts = [f"{count:,} {singular if count == 1 else plural}" for count, singular, plural in counts if count]
        if not parts:
            return []
        return [", ".join(parts) + ("" if self.updated else ": --update takes changes and lists what is gone")]

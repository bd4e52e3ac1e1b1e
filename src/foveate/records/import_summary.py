"""What an import did, in counts that add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ImportSummary:
    """Counts of one import.

    `quarantined` counts findings by "subject: reason" as they were met in this run, also those that an
    earlier run had already written down. `further` counts what only some formats have, by what it is; `notes`
    are sentences for the user.
    """

    source: str = ""
    taken: int = 0
    already_there: int = 0
    removed_earlier: int = 0
    captions_taken: int = 0
    regions_taken: int = 0
    regions_clipped: int = 0
    texts_cleaned: int = 0
    animated: int = 0
    without_text: int = 0
    ignored_files: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    further: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def images_quarantined(self) -> int:
        """Findings about whole images."""
        return sum(count for name, count in self.quarantined.items() if name.startswith("image: "))

    @property
    def regions_quarantined(self) -> int:
        """Findings about single regions."""
        return sum(count for name, count in self.quarantined.items() if name.startswith("region: "))

    def as_dict(self) -> dict[str, object]:
        """All counts as JSON values."""
        return {
            "source": self.source,
            "taken": self.taken,
            "already_there": self.already_there,
            "removed_earlier": self.removed_earlier,
            "captions_taken": self.captions_taken,
            "regions_taken": self.regions_taken,
            "regions_clipped": self.regions_clipped,
            "texts_cleaned": self.texts_cleaned,
            "animated": self.animated,
            "without_text": self.without_text,
            "ignored_files": self.ignored_files,
            "quarantined": dict(sorted(self.quarantined.items())),
            "further": dict(sorted(self.further.items())),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The counts as lines of a table to print; zeros are left out, except for the images taken."""
        told = [
            (self.taken, "images taken"),
            (self.already_there, "images already there"),
            (self.removed_earlier, "images skipped, because they were removed earlier"),
            (self.captions_taken, "captions taken"),
            (self.regions_taken, "regions taken"),
            (self.regions_clipped, "regions clipped to their image"),
            (self.texts_cleaned, "texts freed of control characters"),
            (self.animated, "animated images, of which the first frame is used"),
            (self.without_text, "images without any text"),
            (self.ignored_files, "other files ignored"),
        ]
        rows = [(count, what) for number, (count, what) in enumerate(told) if count or number == 0]
        rows += sorted((count, what) for what, count in self.further.items())
        rows += [(count, f"quarantined: {what}") for what, count in sorted(self.quarantined.items())]
        width = max(len(f"{count:,}") for count, _ in rows)
        return [f"{count:>{width},} {what}" for count, what in rows] + self.notes

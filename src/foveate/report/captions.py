"""Captions side by side with marked assertions: shared by the pages of audits and of the tour."""

from __future__ import annotations

from foveate.caption.audit_results import AuditImage
from foveate.core.results import Region, ResultModel
from foveate.report.images import Overlay

MARKS = {"supported": "held", "contradicted": "contradicted", "unverifiable": "not decidable"}


# What the formats are called, and what each is.
NAMES = {"alt": "AltText", "ssc": "SSC", "dsc": "DSC", "dsc_plus": "DSC+", "afc": "AFC"}
MEANINGS = {
    "alt": "the text that came with the image",
    "ssc": "short: one sentence, the main subject and what it does",
    "dsc": "descriptive: two to four sentences that fit CLIP's window of 77 tokens",
    "dsc_plus": "dense: everything that can be seen, with positions",
    "afc": "like DSC, with the facts of the AltText woven in",
}


class CaptionedImage(AuditImage):
    """An image of the tour: its audited captions, and the regions that its phrases were located at.

    Attributes:
        unusable: texts that are no caption, by the title of their format.
    """

    regions: list[Region] = []
    unusable: dict[str, str] = {}

    @property
    def overlays(self) -> list[Overlay]:
        """Return the boxes of its regions."""
        return [Overlay(region.box, "region") for region in self.regions]


class FormatNumbers(ResultModel):
    """Means over the `n` usable captions of a format; no numbers where there is none."""

    title: str
    n: int
    tokens: float | None = None
    ana: float | None = None
    held: float | None = None


class EncoderValue(ResultModel):
    title: str
    value: float


class EncoderNumbers(ResultModel):
    measure: str
    images: int
    trained_on: int
    captioned: int
    steps: int
    values: list[EncoderValue]


class AssertionTotals(ResultModel):
    """How many of `n` assertions the scene supports, and how many another scene does: the control."""

    n: int
    held: int
    held_by_another_scene: int


class TourCaptions(ResultModel):
    """The tour's captions.

    Attributes:
        reads_requests: the model was trained on caption requests. assertions: of the model's own captions.
    """

    model: str
    reads_requests: bool = True
    definition: str
    examples: list[CaptionedImage]
    formats: list[FormatNumbers]
    assertions: AssertionTotals | None = None
    encoder: EncoderNumbers

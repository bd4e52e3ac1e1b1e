"""result.json of `foveate audit`, as typed models: the audit builds them, its page reads them."""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import Column, ResultModel, Row, RunResult
from foveate.records.captions import CaptionVerdict


class AuditAssertion(ResultModel):
    """One assertion of a caption; `verdict` is "" if there was no judge."""

    text: str
    verdict: str = ""


class AuditCaption(ResultModel):
    """A caption of one format with its assertions."""

    format: str
    title: str
    text: str
    assertions: list[AuditAssertion] = []


class AuditImage(ResultModel):
    """An image of the gallery with its captions; `data` is "scenes" or "images"."""

    image: str
    data: str = ""
    key: str = ""
    captions: list[AuditCaption] = []


class AuditJudge(ResultModel):
    """Meaning of a judge's verdicts, and a hash of that text to compare reports by."""

    definition: str
    hash: str = ""


class AuditSample(ResultModel):
    """The images that were audited.

    Attributes:
        images: their number; `of` has it for each kind of data.
        without_all_formats: images of the split that lack a format and were left out.
        ids: their keys.
    """

    images: int
    of: dict[str, int] = {}
    without_all_formats: int = 0
    split: str | None = None
    seed: int = 0
    ids: list[str] = []


class AuditResult(RunResult):
    """The result of an audit.

    Attributes:
        models: format -> captioner -> number of its captions in the sample.
        scene_oracle: whether captions of the scene oracle are among them.
        context: tokens that the text tower reads.
        splitter, tagger: names of what split assertions and found entities.
        judges: kind of data -> definition of its verdicts.
        metrics: kind of data -> metrics of each format, see `foveate.caption.audit_metrics.compute_metrics`.
        verdicts: on each captioner and format, as the verb stores them in the collection.
    """

    kind: Literal["audit"] = "audit"
    collection: str
    formats: list[str] = []
    models: dict[str, dict[str, int]] = {}
    scene_oracle: bool = False
    sample: AuditSample
    context: int
    splitter: str = ""
    tagger: str = ""
    judges: dict[str, AuditJudge] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    columns: list[Column] = []
    table: list[Row] = []
    interval: str = "95 % intervals, bootstrap over images"
    verdicts: list[CaptionVerdict] = []
    gallery: list[AuditImage] = []

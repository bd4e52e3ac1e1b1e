"""Settings of the targets that a captioner is trained on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveate.core.recipes import Settings
from foveate.records.captions import ALT_KINDS


class TargetSettings(Settings):
    """`data` of a captioner's recipe: what the targets of both stages are made from."""

    split: str = Field("train", description="split to train on")
    sources: tuple[str, ...] = Field(
        ("scenes", "singles", "texts"),
        description="where material comes from, first match wins (modules of caption.targets.sources)",
    )
    short_kinds: tuple[str, ...] = Field((), description="caption kinds that are short captions of an image (stage 1)")
    description_kinds: tuple[str, ...] = Field((), description="caption kinds that are full descriptions (stage 2)")
    alt_kinds: tuple[str, ...] = Field(ALT_KINDS, description="caption kinds that may be the AltText, best first")
    rewriter: str = Field(
        "rules", description="rules (offline) or llm (a chat endpoint); modules of caption.targets.rewriters"
    )
    llm: dict[str, Any] = Field({}, description="settings of the chat client, with rewriter: llm")
    ocr: Literal["auto", "none", "rapidocr"] = Field(
        "auto", description="text recognized in images of the source texts; auto = where rapidocr is installed"
    )
    noisy_alt: float = Field(0.3, ge=0, le=1, description="share of AFC rows whose AltText says nothing true of it")
    invented_names: float = Field(
        0.4, ge=0, le=1, description="share of the other AFC rows of built-in images that get a made-up name to copy"
    )
    images: int | None = Field(None, ge=1, description="maximum number of images, drawn by the seed; none = all")
    text_check: bool = Field(True, description="drop rewrites with a content word that no input has")

"""Settings of an audit; without torch, so that help is shown at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from foveate.caption.lengths import CLIP_WINDOW
from foveate.core.recipes import Settings
from foveate.records.current_captions import PreferredModels


def _canonical_names(names: tuple[str, ...]) -> tuple[str, ...]:
    # People write "DSC+"; captions are stored as "dsc_plus". Other kinds of captions are audited under their own names.
    return tuple(name.strip().lower().replace("dsc+", "dsc_plus") for name in names)


class AuditSettings(Settings):
    """Settings of an audit: formats, sample of images, and units that are counted."""

    formats: Annotated[tuple[str, ...], AfterValidator(_canonical_names)] = Field(
        (), description="caption formats, such as alt,ssc,dsc; by default all that the collection has"
    )
    sample: int = Field(2000, ge=1, description="maximum number of images")
    split: str | None = Field(None, description="split to sample; all images by default")
    prefer: PreferredModels = ()
    context: int = Field(
        CLIP_WINDOW, ge=8, description="context length of the text tower in CLIP tokens, special tokens included"
    )
    tokenizer: Path | None = Field(None, description="also count the tokens of this tokenizer.json")
    entity: Literal["phrase", "head", "ner"] = Field(
        "phrase", description="what an entity is: a whole noun phrase, its head, or a name that spaCy recognizes"
    )
    tagger: str = Field("rules", description="tagger of noun phrases, which serve as entities")
    gallery: int = Field(24, ge=1, le=200, description="number of images on the page")
    seed: int = Field(0, ge=0, description="seed of the sample, the control and the intervals")


class JudgeSettings(Settings):
    """Who judges the assertions of real images; on scenes the ground truth does."""

    judge: Path | None = Field(
        None,
        description="folder of an image-text judge of real images; on scenes it is compared with the ground truth",
    )
    endpoint: str | None = Field(
        None, description="address of an OpenAI-compatible server that splits and judges instead of rules and --judge"
    )
    endpoint_model: str | None = Field(None, description="name of the model on this server")
    key_env: str = Field("", description="environment variable that holds the key of this server")

"""Settings of audits, evaluations, training targets and regions; without torch, so that help is shown at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from foveate.caption.lengths import CLIP_WINDOW
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.core.recipes import Settings
from foveate.records.captions import ALT_KINDS
from foveate.records.ray_work import ExecutorSettings

# The field `prefer` of every settings model that reads current captions.
PreferredModels = Annotated[tuple[str, ...], Field(description="captioners to prefer, best first")]


def _canonical_names(names: tuple[str, ...]) -> tuple[str, ...]:
    # People write "DSC+"; captions are stored as "dsc_plus". Other kinds of captions are audited under their own names.
    return tuple(name.strip().lower().replace("dsc+", "dsc_plus") for name in names)


class AuditSettings(Settings):
    """Settings of an audit: formats, sample of images, and units that are counted.

    Example:
        >>> AuditSettings(formats=("alt", "DSC+"), sample=100).formats
        ('alt', 'dsc_plus')
    """

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


class EvaluationSettings(Settings):
    """`foveate captioner evaluate MODEL`."""

    split: str = Field("test", description="split whose images are captioned")
    limit: int | None = Field(None, ge=1, description="maximum number of images, drawn by the seed")
    shuffled: bool = Field(
        False,
        description="caption another image in the place of each: a control whose captions are less often true",
    )


class TargetSettings(Settings):
    """Material of a captioner's training targets in both stages, and how it is rewritten.

    Example:
        >>> TargetSettings(sources=("texts",), short_kinds=("title",)).rewriter
        'rules'
    """

    split: str = Field("train", description="split to train on")
    sources: tuple[str, ...] = Field(
        ("scenes", "singles", "texts"),
        description="where material comes from, first match wins: scenes, singles or texts",
    )
    short_kinds: tuple[str, ...] = Field((), description="caption kinds that are short captions of an image (stage 1)")
    description_kinds: tuple[str, ...] = Field((), description="caption kinds that are full descriptions (stage 2)")
    alt_kinds: tuple[str, ...] = Field(ALT_KINDS, description="caption kinds that may be the AltText, best first")
    rewriter: str = Field("rules", description="rules (offline) or llm (a chat endpoint)")
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


REGION_BATCH = 16  # images per pass: enough to keep a CPU busy, few enough for a laptop's memory


class RegionLabelSettings(Settings):
    """What `foveate regions` looks for: phrases of which captions, and how they are found.

    Example:
        >>> RegionLabelSettings(captions=("alt",)).phrases.tagger
        'rules'
    """

    phrases: PhraseSettings = PhraseSettings()
    captions: tuple[str, ...] = Field(
        ("dsc_plus", "dsc", "alt"),
        min_length=1,
        description="caption kinds in order of preference; each image's first available kind is used",
    )
    prefer: PreferredModels = ()
    shuffle_phrases: bool = Field(False, description="negative control: every image gets the phrases of another")


class RegionRunSettings(ExecutorSettings):
    """A run of region labeling: its detector and its images.

    Apart from `RegionLabelSettings`, whose hash names the recipe of every row: other images, same recipe. Only
    the control `shuffle_phrases` is another recipe then, because other images have other partners.
    """

    detector: str | None = Field(
        None,
        description="detector to use: mllm (default, with the shipped mini), nanodet (default with another --model), "
        "owlv2, cloc, or annotations (an oracle: boxes that exist)",
    )
    model: str | None = Field(
        None, description="the detector's model: a folder, OWNER/NAME on the hub, or a name of open_clip for nanodet"
    )
    options: tuple[str, ...] = Field((), description="further option of the detector")
    split: str | None = Field(None, description="only images of this split")
    limit: int | None = Field(None, ge=1, description="process only this many images, the first ones")
    batch: int = Field(REGION_BATCH, ge=1, le=4096, description="batch size of the detector")
    samples: int = Field(24, ge=0, le=500, description="number of images on the page")

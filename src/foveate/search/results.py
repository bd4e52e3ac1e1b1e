"""The results of this wing: built by its functions, printed with --json, and read by their pages. No torch.

Each becomes a result.json (of an index, which has no page, the output of --json).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field

from foveate.core.results import BoxValues, LocatedPhrase, ResultModel, RunResult, Search


class LocateResult(LocatedPhrase, RunResult):
    """`foveate locate`; `file` is the user's image, `width` and `height` its pixels after EXIF rotation.

    Attributes:
        localizes: whether the model learned places; False means that boxes were compared by pooled tokens.
        has_match: False where no candidate box matches the phrase better than most random names match one; reason: why.
        floor: the cosine that random names reach. unknown_words: of the phrase.
    """

    kind: Literal["locate"] = "locate"
    model: str = ""
    file: str = ""
    width: int | None = None
    height: int | None = None
    localizes: bool = True
    # Results that earlier releases saved name this field `found`.
    has_match: bool = Field(True, validation_alias=AliasChoices("has_match", "found"))
    reason: str = ""
    floor: float | None = None
    unknown_words: list[str] = []


class LocatedFrame(ResultModel):
    """A frame of a clip with its best box.

    Attributes:
        index, time: number of the frame in the clip, and seconds.
        image: its file in the run folder, for the best frames.
        box: in pixels. fractions: in [0, 1]. None where a multimodal model gives no box.
        score, center_score: cosine of the box, and of the center of the frame, with the phrase; of a multimodal model
            how well its box head finds that the box matches, None without such a head.
    """

    index: int
    time: float
    image: str = ""
    box: BoxValues | None
    fractions: BoxValues | None
    score: float | None
    center_score: float | None


class VideoFindResult(RunResult):
    """`foveate video find`; `best` are positions in `frames`, best first; `measure` is the name of the scores."""

    kind: Literal["video_find"] = "video_find"
    model: str
    clip: str
    phrase: str
    best: list[int]
    frames: list[LocatedFrame]
    measure: str = "cosine"
    warnings: list[str] = []


class SearchResult(Search, RunResult):
    """`foveate search`; `searched` counts the images and regions of the index, `file` is the query's image.

    Attributes:
        has_match: False where the hits are no better than those of texts without a meaning; reason: why.
        floor: the score that a hit must exceed, and what was measured of it. unknown_words: of the query.
    """

    kind: Literal["search"] = "search"
    model: str = ""
    index: str = ""
    collection: str = ""
    searched: dict[str, int] = {}
    backend: str = ""
    file: str | None = None
    has_match: bool = Field(True, validation_alias=AliasChoices("has_match", "found"))
    reason: str = ""
    floor: dict[str, float] = {}
    unknown_words: list[str] = []


class IndexResult(RunResult):
    """`foveate index`.

    Attributes:
        embedded: images embedded by this run (to embed, in a dry run). dropped: images that the collection removed.
        crops: boxes among them that took a pass of the encoder each. folder: files of a plain folder of images.
        megabytes_new: size of the new vectors. counts: of images, regions and unreadable images in the index.
        floor: below which a search finds nothing, see `foveate.search.index_folder.Floor`.
    """

    kind: Literal["index"] = "index"
    model: str
    collection: str
    regions: str
    region_sources: list[str]
    precision: str
    dry_run: bool = False
    embedded: int
    crops: int = 0
    dropped: int
    megabytes_new: float
    counts: dict[str, int]
    folder: dict[str, Any] | None = None
    floor: dict[str, Any] | None = None

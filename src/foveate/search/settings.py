"""Settings of `foveate index`, `search` and `locate`; without torch, so that help is shown at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from foveate.core.errors import nearest
from foveate.core.recipes import Settings, parse_pairs
from foveate.records.ray_work import ExecutorSettings
from foveate.records.region_sources import RegionSources

RegionRule = Literal["auto", "boxes", "grid", "both", "none"]
Precision = Literal["float32", "float16"]
LocateRule = Literal["head", "candidates"]
FAISS = "faiss"
BACKENDS = ("exact", FAISS, "lancedb", "qdrant")
LOCATE_RULES: tuple[str, ...] = get_args(LocateRule)


class IndexSettings(ExecutorSettings):
    """Settings of an index. A field that is None is that of the existing index, or the default of a new one."""

    regions: RegionRule | None = Field(
        None,
        description="what is embedded besides whole images: boxes of the data, a grid, both or none; auto (default) "
        "takes the grid for images without boxes",
    )
    region_sources: RegionSources = None
    precision: Precision | None = Field(
        None, description="precision of the stored vectors: float32 by default; float16 takes half the space"
    )
    ocr: bool = Field(
        False, description="words that are read in the images (extra ocr) find them, too; a later run keeps to it"
    )
    retry: bool = Field(False, description="retry images that could not be read before")


# Chosen by benchmarks/search_quality.py, see docs/methods/bridge.md: a higher weight gains nothing where captions are
# right, and loses more where they are wrong.
TEXT_WEIGHT = 3.0


class HitSettings(Settings):
    """Settings of a search: the hits to return."""

    count: int = Field(20, ge=1, description="maximum number of hits")
    kind: Literal["images", "regions", "both"] = Field("both", description="kinds of results")
    per_image: int = Field(1, ge=1, description="maximum number of hits from one image")
    text_weight: float = Field(
        TEXT_WEIGHT,
        ge=0,
        le=100,
        description="weight of the query's words in captions and file names, in standard deviations of the cosine; 0 "
        "ignores captions and names",
    )
    backend: str = Field(
        "exact",
        description="exact; or faiss (extra), which is approximate for large indexes; or faiss:FACTORY, an index of "
        "faiss's index_factory, such as faiss:IVF4096,PQ64; or a database (extras): lancedb, qdrant, lancedb:FOLDER, "
        "qdrant:FOLDER or qdrant:http://HOST:6333",
    )

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        name, colon, argument = value.partition(":")
        if name not in BACKENDS or (colon and not argument) or (colon and name == "exact"):
            raise ValueError(
                "allowed are exact, faiss, faiss:FACTORY, lancedb, lancedb:FOLDER, qdrant, qdrant:FOLDER and "
                f"qdrant:URL{nearest(name, BACKENDS)}"
            )
        return value


def _parse_corners(value: Any) -> Any:
    """Read four numbers that are written with commas, or split there by the command line."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        x1, y1, x2, y2 = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError("allowed are four numbers x1,y1,x2,y2, as in 0.1,0.2,0.5,0.6") from None
    return x1, y1, x2, y2


def _parse_weights(value: Any) -> Any:
    return value if isinstance(value, Mapping) else parse_pairs(value, hint="allowed is PART=NUMBER, as in text=0.5")


class SearchSettings(HitSettings):
    """Parts of a query besides its text, and which hits it gets."""

    # A page of more hits is too large for a browser; in Python there is no such limit.
    count: int = Field(20, ge=1, le=1000, description="maximum number of hits")
    image: Path | None = Field(None, description="search with this image")
    box: Annotated[tuple[float, float, float, float], BeforeValidator(_parse_corners)] | None = Field(
        None, description="search with this box of --image: corners in [0, 1]"
    )
    pixels: bool = Field(False, description="the corners of --box are pixels")
    negative: str | None = Field(None, description="text that the results should not match")
    weights: Annotated[dict[str, float], BeforeValidator(_parse_weights)] = Field(
        {}, description="weight above 0 of text, image, box or negative in the sum; 1 by default"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SearchSettings:
        if self.pixels and self.box is None:
            raise ValueError("--pixels says what the corners of --box are: give --box too")
        # Corners above 1 are nearly always pixels; guessing would search with another box where an image is tiny.
        if self.box is not None and not self.pixels and max(self.box) > 1:
            corners = ",".join(f"{corner:g}" for corner in self.box)
            raise ValueError(
                f"--box {corners}: corners must lie in [0, 1] of the image; give --pixels where they are pixels"
            )
        return self


class LocateSettings(Settings):
    """Settings of `foveate locate`: how a phrase is located in an image."""

    rule: LocateRule | None = Field(
        None,
        description="rule that selects the box: the grounding head, or the best of several hundred candidates; "
        "by default the better one on the model's validation split",
    )

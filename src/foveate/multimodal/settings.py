"""Settings of a multimodal model (tower, connector, language model, regions) and of asking one; free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from foveate.core.recipes import Settings
from foveate.language.settings import LoraOptions, SparseOptions
from foveate.multimodal.assemble import AssemblyOptions


class SourceSettings(Settings):
    """A language model from elsewhere, and what of it is trained."""

    source: str = Field(
        min_length=1, description="smollm2, a folder or hub id of transformers, or a GGUF file; see language/open.py"
    )
    revision: str | None = Field(default=None, description="of a hub id: commit, tag or branch; the folder pins it")
    chat: Literal["chatml", "plain", "vicuna"] | None = Field(
        default=None, description="chat template; unset = the source's"
    )
    tuning: Literal["lora", "frozen", "full"] = Field(
        default="lora", description="lora = pairs beside its linear layers; frozen = nothing of it; full = all of it"
    )
    lora: LoraOptions = Field(default=LoraOptions(), description="of tuning lora: rank, alpha, dropout, targets")
    dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="of the weights that LoRA stands beside")


def _kind_of_language(value: Any) -> str:
    # Recipes pass a dict, callers in code an object.
    return "source" if isinstance(value, SourceSettings) or "source" in value else "config"


Language = Annotated[
    Annotated[SourceSettings, Tag("source")] | Annotated[dict[str, Any], Tag("config")],
    Discriminator(_kind_of_language),
]


class MultimodalSettings(Settings):
    """Parts of a multimodal model. Stored in the model folder's config."""

    tower: dict[str, Any] = Field(
        description="image encoder: `kind` and its options; with `layer` (LLaVA: -2) and `norm` a hidden layer of it"
    )
    tiles_tower: dict[str, Any] | None = Field(
        default=None,
        description="image encoder of tiles, with a connector of its own; `tower` then sees overviews alone "
        "(Ferret-v2); unset = `tower` sees all",
    )
    connector: dict[str, Any] = Field(description="`kind` (cabstractor, linear, mlp, pixel_shuffle, pooled), options")
    language: Language = Field(
        description="`source` of a trained model and what of it is trained, or, for a new one, `model_type` of "
        "transformers and fields of its config"
    )
    experts: SparseOptions | None = Field(
        default=None, description="experts in place of the MLP of every second layer; unset = a dense language model"
    )
    assembly: AssemblyOptions | None = Field(
        default=None, description="tiles and overview of images, and the text between them; unset = one view an image"
    )
    frame: Literal["image", "canvas"] = Field(
        default="image",
        description="what coordinates in text are relative to: the original image or its padded canvas",
    )
    regions: Literal["text", "tokens", "hybrid"] = Field(
        default="text",
        description="text = coordinates in digits, 0 to 999; tokens = one token that carries a vector of the region; "
        "hybrid = both in questions and digits in answers, as in Ferret",
    )
    region_encoder: dict[str, Any] | None = Field(
        default=None,
        description="`kind` (sampler, mean, roi) and options: reads the vector of a region from the tower's map, tiles "
        "included; unset = the mean of its patches behind the connector",
    )
    region_map: Literal["tower", "connector"] = Field(
        default="tower",
        description="what a region encoder reads: tokens of the tower, of two towers with linear adapters where their "
        "widths differ, or those behind the connector, which must keep all of them",
    )
    region_points: int = Field(default=512, ge=1, le=8192, description="points that a region encoder reads of a region")
    region_norm: bool = Field(
        default=True,
        description="scale vectors of a region encoder to the length of embeddings (not in the paper); not with "
        "region_mean",
    )
    region_mean: bool = Field(
        default=False,
        description="add the vectors of a region encoder, at first zero, to the mean of the connector's tokens in the "
        "region: it starts with what the language model reads already (not in the paper)",
    )
    region_fusion: Literal["nearest", "bilinear"] = Field(
        default="nearest", description="brings the overview's map to the size of the tiles' for a region encoder"
    )
    phrase_maps: bool = Field(
        default=False, description="add to each text token the map of where it is seen (not in the paper)"
    )
    box_head: bool = Field(
        default=False,
        description="boxes of answers from a head on the phrase's map, not in digits; with regions hybrid in front of "
        "the digits (not in the paper)",
    )
    visual_words: bool = Field(
        default=False,
        description="visual tokens and regions are read as mixtures of the embeddings of names, by how alike alignment "
        "finds them (after AlignVLM, with names for its vocabulary); with a `source`, not tuned in full",
    )
    max_images: int = Field(default=8, ge=1, description="most images of one question")
    visual_positions: bool = Field(
        default=True,
        description="add a learned vector for each visual token and image (not in the paper); false = can be exported",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> MultimodalSettings:
        if self.experts is not None and isinstance(self.language, SourceSettings):
            raise ValueError("experts: need a new language model (got one with a source); expected a model_type")
        if self.visual_words and (not isinstance(self.language, SourceSettings) or self.language.tuning == "full"):
            got = self.language.tuning if isinstance(self.language, SourceSettings) else "a new language model"
            raise ValueError(
                f"visual_words: embeddings must stay as they are (got {got}); expected tuning lora or frozen"
            )
        if self.regions == "text" and self.region_encoder is not None:
            raise ValueError("region_encoder: no effect with regions 'text'; expected regions tokens or hybrid")
        if self.region_encoder is not None and "num_points" in self.region_encoder:
            raise ValueError("region_encoder.num_points: set by the model; expected region_points")
        if self.region_map != "tower" and self.region_encoder is None:
            raise ValueError(f"region_map: no effect without region_encoder (got {self.region_map})")
        for name, default in (("region_mean", False), ("region_fusion", "nearest")):
            if getattr(self, name) != default and self.region_encoder is None:
                raise ValueError(f"{name}: no effect without region_encoder (got {getattr(self, name)})")
        if self.region_mean and self.region_norm:
            raise ValueError("region_norm: would scale the mean of tokens (got true); expected false with region_mean")
        if self.region_fusion != "nearest" and self.assembly is None:
            raise ValueError(f"region_fusion: no effect without tiles (got {self.region_fusion}); expected assembly")
        if self.tiles_tower is not None and (self.assembly is None or self.assembly.tiling.overview == "none"):
            raise ValueError("tiles_tower: needs tiles and an overview; expected assembly with an overview")
        if self.assembly is not None and self.assembly.token_order == "rows" and self.visual_positions:
            raise ValueError(
                "visual_positions: stand for places in a view (got true); expected false with order 'rows'"
            )
        if self.assembly is None:
            if self.frame == "canvas":
                raise ValueError("frame: one view an image has no canvas (got canvas); expected image, or assembly")
            return self
        if self.regions != "text" and self.frame == "canvas":
            raise ValueError("frame: region tokens are placed in the image (got canvas); expected image")
        # A region's patches, maps and boxes are read off the one view that shows all of the image.
        for name, value, expected in (
            ("regions", self.regions, self.regions if self.region_encoder is not None else "text"),
            ("phrase_maps", self.phrase_maps, False),
            ("box_head", self.box_head, False),
        ):
            if value != expected:
                raise ValueError(f"{name}: needs one view an image (got {value}); expected {expected} with assembly")
        return self


# Settings of asking; free of torch, so that the command line can show them.


Unit = Literal["pixels", "0-1", "0-1000"]
RegionPrompt = Literal["draw", "crop", "coordinates"]
REGION_PROMPT = (
    "how regions are shown to a model that never saw any: draw = a red mark in the image, crop = what lies around it "
    "beside the image, coordinates = numbers in the question; by default a model's own regions, of transformers "
    "coordinates where its family has a unit of boxes, else draw"
)


class OpeningOptions(Settings):
    """How the weights of a model of transformers are put into memory; our own models take none of it."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="number format of a transformers model's weights; auto = as stored; by default float32 on a CPU "
        "and auto elsewhere",
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        default=None,
        description="spread a transformers model over all GPUs, and over the CPU where they are too small, as "
        "accelerate does (extra gpu)",
    )
    quantize: Literal["4bit"] | None = Field(
        default=None,
        description="load a transformers model with weights of 4 bits, by bitsandbytes (extra gpu); needs a CUDA GPU",
    )

    def describe(self) -> str:
        """Return what decides answers, for the identity of a run; "" for the defaults."""
        return " ".join(f"{name}={value}" for name in ("dtype", "quantize") if (value := getattr(self, name)))


class AskSettings(Settings):
    """How a question is answered."""

    model: str = Field(
        default="mini",
        description="a shipped model (mini, mini-ferret or smollm2-mini), a model folder of foveate mllm train, or a "
        "folder or hub id of an image-text-to-text model of transformers",
    )
    adapter: str | None = Field(
        default=None,
        description="folder of an adapter of PEFT, such as foveate mllm train own-vlm writes; without --model its base "
        "is that which it names",
    )
    max_tokens: int = Field(default=64, ge=1, le=4096, description="longest answer in tokens")
    unit: Unit = Field(
        default="pixels",
        description="of the numbers of boxes, points and strokes: pixels of the image after its EXIF rotation, or "
        "fractions of its sides, 0 to 1 or 0 to 1000",
    )
    region_prompt: RegionPrompt | None = Field(default=None, description=REGION_PROMPT)

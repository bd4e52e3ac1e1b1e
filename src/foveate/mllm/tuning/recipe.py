"""Recipe of an adapter: its base, a method of PEFT, the conversations and the training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from foveate.core.recipes import Settings
from foveate.multimodal.settings import OpeningOptions
from foveate.training.settings import TrainingSettings


class AdapterSettings(Settings):
    """What is added to the base, by PEFT."""

    method: Literal["lora", "dora", "rslora", "pissa"] = Field(
        default="lora",
        description="lora; dora = with magnitudes of its own; rslora = alpha over the root of the rank; pissa = starts "
        "from the largest singular values of the weights",
    )
    rank: int = Field(default=16, ge=1, le=4096, description="width of the pairs beside a linear layer")
    alpha: int = Field(default=32, ge=1, description="factor of the pairs times the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what the pairs read, while training")
    targets: Literal["language", "all"] = Field(
        default="language",
        description="linear layers with pairs: those of the language model, or of image tower and connector as well",
    )


class TuningRecipe(Settings):
    """The recipe of `foveate mllm train own-vlm`: an adapter for a model of transformers.

    Example:
        >>> from foveate.core import load_recipe
        >>> load_recipe(TuningRecipe, "own-vlm", ["adapter.method=dora"]).adapter.rank
        16
    """

    config_version: Literal[1] = 1
    base: str = Field(
        default="",
        description="image-text-to-text model of transformers: a folder, or OWNER/NAME[@REVISION] on the hub",
    )
    adapter: AdapterSettings
    unit_of_boxes: str | None = Field(
        default=None,
        description="unit that the boxes of questions and answers are written in, as in foveate ask; unset = that of "
        "the base's family",
    )
    quantization: Literal["none", "4bit"] = Field(
        default="none", description="of the base's weights; 4bit = NF4 of bitsandbytes, on a CUDA GPU alone"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="number format of the base's weights, as in foveate ask; the adapter's stay float32",
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        default=None, description="spread the base over all GPUs of one process, as in foveate ask"
    )
    recompute: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    split: str = Field(default="train", description="split of the collection that is trained on")
    validation_split: str = Field(
        default="validation", description="split that is measured; without conversations in it nothing is"
    )
    validation_conversations: int = Field(default=200, ge=1, description="most of them, drawn by the seed")
    training: TrainingSettings

    @property
    def opening(self) -> OpeningOptions:
        """How the base is opened."""
        quantize = None if self.quantization == "none" else self.quantization
        return OpeningOptions(dtype=self.dtype, device_map=self.device_map, quantize=quantize)

    @model_validator(mode="after")
    def _check_parallel(self) -> TuningRecipe:
        if self.training.parallel == "fsdp":
            raise ValueError("training.parallel: an adapter is not sharded (got fsdp); expected ddp")
        return self

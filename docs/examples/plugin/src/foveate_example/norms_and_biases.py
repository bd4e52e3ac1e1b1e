"""A method of `foveate adapt train`: every norm layer and every bias is trained, nothing else."""

from __future__ import annotations

from typing import Literal

from foveate.adapt.adapter import Method, MethodSettings, NativeAdapter, bias_names, norm_names
from foveate.adapt.backbone import Backbone


class Settings(MethodSettings):
    """No options."""

    method: Literal["norms_and_biases"] = "norms_and_biases"


class NormsAndBiases(NativeAdapter[Settings]):
    """Train weight and bias of every norm layer, and every other bias."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, sorted({*norm_names(backbone), *bias_names(backbone)}))


METHOD = Method(Settings, NormsAndBiases, paper="", location="every norm, every bias", mergeable=True)

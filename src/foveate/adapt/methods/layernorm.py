"""LayerNorm tuning: weight and bias of every norm layer.

Frankle, Schwab and Morcos 2021, arXiv 2003.00152 (batch norms); of transformers the study (arXiv 2409.16434),
appendix. ViT-B/16: 38,400 parameters. Merges natively. CLIP's norm in front of the blocks counts. Convolutional
networks: their batch and group norms.
"""

from __future__ import annotations

from typing import Literal

from foveate.adapt.adapter import Method, MethodSettings, NativeAdapter, norm_names
from foveate.adapt.backbone import Backbone


class LayernormSettings(MethodSettings):
    """No options."""

    method: Literal["layernorm"] = "layernorm"


class LayernormAdapter(NativeAdapter[LayernormSettings]):
    """Train weight and bias of every norm layer."""

    def __init__(self, settings: LayernormSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, norm_names(backbone))


METHOD = Method(
    LayernormSettings,
    LayernormAdapter,
    paper="arXiv 2003.00152",
    location="every norm",
    mergeable=True,
    peft="LN_TUNING",
)

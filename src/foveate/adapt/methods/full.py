"""Full fine-tuning: every tensor of the vision tower and the head.

The other baseline. A copy of the original tensors is stored, to disable the adapter and for WiSE; merges natively.
"""

from __future__ import annotations

from typing import Literal

from foveate.adapt.adapter import Method, MethodSettings, NativeAdapter, trainable_names
from foveate.adapt.backbone import Backbone


class FullSettings(MethodSettings):
    """No options."""

    method: Literal["full"] = "full"


class FullAdapter(NativeAdapter[FullSettings]):
    """Train every parameter of the tower that images pass."""

    def __init__(self, settings: FullSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, trainable_names(backbone))


METHOD = Method(FullSettings, FullAdapter, paper="", location="everywhere", mergeable=True)

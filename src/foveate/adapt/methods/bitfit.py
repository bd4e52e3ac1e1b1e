"""BitFit: every bias is trained; those of norms, of qkv and of the patch convolution too.

Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199, section 3. ViT-B/16: 102,912 parameters. Merges natively.
Where a projection has no bias (CLIP's patch convolution) there is none to train, and none is added.
"""

from __future__ import annotations

from typing import Literal

from foveate.adapt.adapter import Method, MethodSettings, NativeAdapter, bias_names
from foveate.adapt.backbone import Backbone


class BitfitSettings(MethodSettings):
    """No options."""

    method: Literal["bitfit"] = "bitfit"


class BitfitAdapter(NativeAdapter[BitfitSettings]):
    """Train every bias of the tower."""

    def __init__(self, settings: BitfitSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, bias_names(backbone))


METHOD = Method(BitfitSettings, BitfitAdapter, paper="arXiv 2106.10199", location="every bias", mergeable=True)

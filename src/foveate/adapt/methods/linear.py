"""Linear probing: only the new head is trained.

The baseline of every study of adaptation; of the study (arXiv 2409.16434) section 3. Parameters without the head: 0.
Merges trivially. Its features are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from foveate.adapt.adapter import Adapter, Handle, Method, MethodSettings
from foveate.adapt.backbone import Backbone


class LinearSettings(MethodSettings):
    """No options."""

    method: Literal["linear"] = "linear"


class LinearAdapter(Adapter[LinearSettings]):
    """No parameters: the head alone is trained."""

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Register nothing."""
        return iter(())

    def first_block(self, backbone: Backbone) -> int:
        """Return a number behind the final norm, so that the features are cached."""
        # `len(blocks)` would mean "the final norm changes", which recomputes that norm in every pass.
        return len(backbone.blocks) + 1


METHOD = Method(LinearSettings, LinearAdapter, paper="", location="nowhere: the head alone", mergeable=True)

"""Strategy `chosen`: a few frames that differ most, with all their tokens.

Like KTV (arXiv 2602.03615), which clusters features of frames: here they are chosen farthest-first, and no token is
thinned out.
"""

from __future__ import annotations

from pydantic import Field

from foveate.video.strategies import MAX_FRAMES, SlowPool
from foveate.video.strategies.slow import Slow
from foveate.vision.video.choosing import ChoiceRule


class Chosen(Slow):
    """Settings of chosen frames; six of 576 tokens fill a context of 4,096 beside a prompt."""

    slow: int = Field(6, ge=1, le=MAX_FRAMES, description="frames to choose")
    slow_pool: SlowPool = Field("concat", description="operator of the frames, or a stride: 1x1, 1x2, 2x2")
    choose: ChoiceRule = Field("cover", description="how frames are chosen: evenly, or by what their images show")


STRATEGY = Chosen

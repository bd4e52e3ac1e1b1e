"""Networks of the open_clip library: both towers, building from a configuration, exporting."""

from foveate.vision.open_clip.towers import IMAGE_ENCODER, TEXT_ENCODER

__all__ = ["IMAGE_ENCODER", "TEXT_ENCODER"]

"""Boxes of an image without words: NanoDet, which comes with the package, and the padded square that detectors see."""

"""VESL: from a caption to phrases, from phrases to boxes, and so to rows of region and text."""

"""Captioner backends: each module is one and has a `BACKEND` (see `caption.captioner`)."""

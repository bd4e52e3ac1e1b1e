"""Captioners: each module is one backend and has a `BACKEND`, see `foveate.caption.captioner`."""

"""Classifiers on disk, one module a format: `reads`, `load`, `save`. Found by their names, there is no central list."""

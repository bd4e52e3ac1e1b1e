"""Classifiers on disk, one module per format with `matches`, `load` and `save`; modules are found by their names."""

"""Evaluation suites of multimodal models, found by the names of their modules."""

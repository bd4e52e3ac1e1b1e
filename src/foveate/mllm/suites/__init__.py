"""Evaluation suites of multimodal models, rows of the tables SUITES of these modules."""

"""Captioner backends for generated scenes, each found by its module's name."""

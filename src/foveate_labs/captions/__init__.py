"""Captions of generated scenes: claims, templates, and the ground truth that judges them."""

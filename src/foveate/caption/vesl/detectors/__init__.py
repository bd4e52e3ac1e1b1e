"""Detectors by name: one module each, which offers DETECTOR."""

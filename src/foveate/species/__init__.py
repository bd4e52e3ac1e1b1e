"""Recognize species on camera-trap images at places that the model has never seen (COSMO)."""

"""Taggers by name: one module each, which offers TAGGER."""

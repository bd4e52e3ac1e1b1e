"""Rewriters of short captions and descriptions into the formats, one module each."""

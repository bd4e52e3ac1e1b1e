"""Frames of a clip: reading, sampling by position or time, and choosing by what they show."""

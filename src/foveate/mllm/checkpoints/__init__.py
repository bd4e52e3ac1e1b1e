"""Readers of checkpoints that research code released in layouts of its own."""

"""A method and an import format for Foveate."""

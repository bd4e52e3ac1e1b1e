"""Drawings that ship inside the package, as cut-outs and as collections of single objects."""

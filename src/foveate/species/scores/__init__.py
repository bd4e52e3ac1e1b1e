"""Scores of triples: a score is a module that defines SCORE, a `Score`."""

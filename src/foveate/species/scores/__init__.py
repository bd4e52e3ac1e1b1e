"""Scores of triples by the name that a recipe gives: module and class, so that a recipe is read without torch."""

SCORES = {
    "complex": "foveate.species.score:ComplEx",
    "conve": "foveate.species.score:ConvE",
    "distmult": "foveate.species.score:DistMult",
}

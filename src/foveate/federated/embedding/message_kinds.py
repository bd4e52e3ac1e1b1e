"""Kinds of FedNE's messages, in a module that loads no torch."""

POINTS = "query.points"
BOX = "query.box"
SURROGATE = "query.surrogate"
FIELD = "query.field"
POSITIONS = "query.positions"
TRAIN = "train"

REMOTE_KINDS = (POINTS, BOX, SURROGATE, FIELD, TRAIN)
"""Requests that a client answers over a network: all but its map positions."""

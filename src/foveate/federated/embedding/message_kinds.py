"""Kinds of FedNE's messages, by themselves so that they can be named without loading torch."""

POINTS = "query.points"
BOX = "query.box"
SURROGATE = "query.surrogate"
FIELD = "query.field"
POSITIONS = "query.positions"
TRAIN = "train"

REMOTE_KINDS = (POINTS, BOX, SURROGATE, FIELD, TRAIN)
"""What a client answers to a server elsewhere: all but its map positions."""

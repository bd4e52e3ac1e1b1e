"""Kinds of DeepFeCA's messages, in a module that loads no torch."""

SIZE = "query.size"
EMBEDDED = "query.embedded"
TRAIN = "train.prototypes"

REMOTE_KINDS = (SIZE, EMBEDDED, TRAIN)
"""Requests that a client answers over a network. In one process the server knows the size of the data."""

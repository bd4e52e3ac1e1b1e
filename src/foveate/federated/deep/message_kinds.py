"""Kinds of DeepFeCA's messages, by themselves so that they can be named without loading torch."""

SIZE = "query.size"
EMBEDDED = "query.embedded"
TRAIN = "train.prototypes"

REMOTE_KINDS = (SIZE, EMBEDDED, TRAIN)
"""What a client answers to a server elsewhere. In one process the server knows the size of the data."""

RESULT = "federated_features"
"""Kind of a run's result.json."""

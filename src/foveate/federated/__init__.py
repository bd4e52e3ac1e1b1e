"""Federated wing: data that may not leave its client. Algorithms on typed messages, apart from what carries them."""

"""Federated wing: data that may not leave its site. Algorithms on typed messages, apart from what carries them."""

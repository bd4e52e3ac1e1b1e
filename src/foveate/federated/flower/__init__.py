"""The federated wing over a network: Flower carries the messages (extra `flower`); nothing else here knows Flower."""

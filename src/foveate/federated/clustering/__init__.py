"""Federated k-means: FeCA as far as it is known, `consensus`, and their baselines. NumPy and SciPy only."""

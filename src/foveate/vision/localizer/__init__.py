"""The image-text model that can be asked about boxes (CLOC and its baselines): settings, network, model folder."""

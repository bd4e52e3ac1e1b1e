"""The image-text model that embeds and locates boxes (CLOC and its baselines): settings, network, model folder."""

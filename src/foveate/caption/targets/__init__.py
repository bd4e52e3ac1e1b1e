"""Training targets for captioners: what is known of an image, rewritten into the caption formats."""

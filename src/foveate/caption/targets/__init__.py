"""Training targets for captioners: facts about an image, rewritten into the caption formats."""

"""First floor, above vision and language: a sample of images and texts as one sequence of tokens."""

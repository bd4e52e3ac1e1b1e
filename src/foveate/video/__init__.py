"""Video questions for models of images, without training (SlowFast-LLaVA)."""

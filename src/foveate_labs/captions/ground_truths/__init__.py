"""Ground truths by which `foveate audit` judges captions, each found by its module's name."""

"""Sources of material for training targets, one module each: `read(collection, rows, settings, seed=...)`."""

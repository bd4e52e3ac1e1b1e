"""Where the captioner's targets come from, one module each: `read(collection, rows, settings, seed=...)`."""

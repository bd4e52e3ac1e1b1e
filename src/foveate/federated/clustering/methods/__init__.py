"""Server methods, one module each, found by name; `METHOD` says what clients send and how the pool becomes centers."""

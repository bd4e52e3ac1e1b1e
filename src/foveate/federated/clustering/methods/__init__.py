"""Server methods, one module each, found by name; `METHOD` declares what clients send and how it is merged."""

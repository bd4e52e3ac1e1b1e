"""Import formats of camera-trap surveys, each found by its module's name."""

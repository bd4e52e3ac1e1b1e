"""Export formats of camera-trap surveys."""

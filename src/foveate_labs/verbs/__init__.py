"""Commands of the laboratory: `foveate tour` and `foveate study`."""

"""Who does the asking: each module is one executor and has an `EXECUTOR`, see `foveate.caption.executing`."""

"""Export targets: module `x_y` of this package is the target `x-y` of `foveate mllm export MODEL --to x-y`.

Each has `export(job)`, which writes into the empty folder `job.folder` and reports what it measured, or raises why the
model cannot be written.
"""

"""Export targets of `foveate mllm export MODEL --to NAME`: rows of the tables TARGETS of these modules.

Each is a function that writes into the empty folder `job.folder` and reports what it measured, or raises why the model
cannot be written.
"""

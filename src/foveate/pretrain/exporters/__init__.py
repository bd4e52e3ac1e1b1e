"""Export targets: module `x` of this package is the target `x` of `foveate export MODEL --to x`.

Each has `check(job)`, which lists the files that would be written or raises why it cannot, and `export(job)`, which
writes into the empty folder `job.folder` and reports what it measured. A new target is one new module here.
"""

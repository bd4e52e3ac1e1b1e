"""Where models go: module `x` of this package is the target `x` of `foveate export MODEL --to x`.

Each offers `check(job)`, which names what would be written or says why it cannot be, and `export(job)`, which writes
into the empty folder `job.folder` and says what it measured. A new target is one new module here.
"""

"""Decision stages: a stage is a module with ORDER, `StageSettings` and `prepare`, run in the sequence of ORDER.

`prepare(settings, others, classes, taxa)` reads what the settings name and returns a function from rows to rows, or
None if the stage is off; `others` are the settings of all stages by name.
"""

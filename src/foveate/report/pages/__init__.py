"""One module per kind of run; `foveate.report.render` finds it by the `kind` field of result.json."""

"""Executors send the requests of a run: each module is one and has an `EXECUTOR`, see `executors.local.Executor`."""

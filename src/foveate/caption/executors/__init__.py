"""Executors of requests: each module is one and has an `EXECUTOR` (see `executors.local`)."""

"""The methods: each module here offers METHOD. A new method is a new module; nothing else changes."""

"""Which networks can be adapted: each module here offers `view(model)`, a `Backbone` or None. No central list."""

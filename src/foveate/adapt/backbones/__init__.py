"""Which networks can be adapted: each module here offers `backbone(model)`, a `Backbone` or None. No central list."""

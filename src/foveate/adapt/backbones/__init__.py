"""Networks that can be adapted: each module offers `map_backbone(model)`, a `Backbone` or None. No central list."""

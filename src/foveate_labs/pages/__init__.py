"""Pages of the tour and the studies, each found by the kind of its result."""

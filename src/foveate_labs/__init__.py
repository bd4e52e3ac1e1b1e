"""The laboratory: generated worlds, studies of the papers' claims, and the tour. The product never imports it."""

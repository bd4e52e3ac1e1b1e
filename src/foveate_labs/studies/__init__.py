"""The roof: what the papers claim, run as experiments on built-in images; the tour is the shortest of them."""

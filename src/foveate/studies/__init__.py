"""The roof: what the papers claim, run as experiments on built-in pictures; the tour is the shortest of them."""

"""Split captions into assertions, and judge each of them."""

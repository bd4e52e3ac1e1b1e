"""What a caption asserts, and whether it holds."""

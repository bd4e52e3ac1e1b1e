"""Names, families and phrases of the images that ship inside the package."""

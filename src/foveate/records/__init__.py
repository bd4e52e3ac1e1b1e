"""Ground floor: what an image carries, and collections of images on disk. No torch here."""

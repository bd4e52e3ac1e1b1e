"""Ground floor: what a picture carries, and collections of pictures on disk. No torch here."""

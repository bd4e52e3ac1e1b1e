"""Search: an index of the embeddings of a collection, what is asked of it, and what it answers."""

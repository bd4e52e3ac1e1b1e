"""First floor: from pixels and texts to tokens and embeddings, and from tokens to regions."""

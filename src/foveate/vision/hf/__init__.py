"""Networks of the transformers library, one module a kind of encoder."""

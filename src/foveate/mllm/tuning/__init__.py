"""Adapters for vision-language models of transformers, trained on conversations of a collection."""

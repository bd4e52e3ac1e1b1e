"""An OpenAI-compatible server for any model folder or index, and a page to play with it."""

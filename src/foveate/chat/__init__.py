"""The OpenAI-compatible chat protocol: messages, client with retries, dynamic batching."""

"""The OpenAI-compatible chat protocol: typed messages, a client with retries, and batching of concurrent calls."""

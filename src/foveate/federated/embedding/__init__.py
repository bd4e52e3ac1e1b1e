"""FedNE: one map of data at several clients, drawn by one shared encoder (arXiv 2409.11509)."""

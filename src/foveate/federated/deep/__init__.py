"""DeepFeCA: clients train one encoder on groups that a server makes of their centroids. PyTorch."""

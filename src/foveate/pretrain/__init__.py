"""Contrastive pretraining of an image encoder that can be asked about boxes and phrases (CLIP and CLOC)."""

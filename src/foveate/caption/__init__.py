"""Captions of chosen formats for the images of a collection, and audits of them."""

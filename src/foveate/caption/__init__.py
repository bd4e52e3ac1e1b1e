"""The caption wing: captions of a chosen format for every picture of a collection, and what they are worth."""

"""The caption wing: captions of a chosen format for every image of a collection, and what they are worth."""

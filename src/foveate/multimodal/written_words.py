"""Answers to questions about written words: which questions these are, and what the word reader's finds become."""

from __future__ import annotations

NOTHING_TO_READ = "no readable text was found"

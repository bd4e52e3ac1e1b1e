"""Generated documents with exact contents and boxes of words: pages, tables, charts and receipts."""

from __future__ import annotations

from foveate_labs.worlds.documents.document import Document, draw_document
from foveate_labs.worlds.documents.questions import ask_document, build_documents

__all__ = ["Document", "ask_document", "build_documents", "draw_document"]

"""Generated documents with exact contents and boxes of words: pages, tables, charts and receipts."""

from __future__ import annotations

from foveate.records.documents.document import Document, draw_document
from foveate.records.documents.document_collection import build_documents
from foveate.records.documents.questions import ask_document

__all__ = ["Document", "ask_document", "build_documents", "draw_document"]

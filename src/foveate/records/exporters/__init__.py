"""Exporters: each writes a collection in one format of the field."""

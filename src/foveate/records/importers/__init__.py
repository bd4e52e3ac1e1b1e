"""Importers: each brings one format of the field into a collection and returns an `ImportSummary`."""

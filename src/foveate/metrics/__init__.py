"""Metrics of the field as pure numpy functions, with confidence intervals. No torch."""

"""Estimate the cost of a run before it starts, without a device."""

"""Prices: what a run will take, before it is started and without a device."""

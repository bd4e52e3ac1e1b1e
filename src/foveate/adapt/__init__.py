"""Adaptation of trained vision models: few labels, few parameters, and what they knew before is kept."""

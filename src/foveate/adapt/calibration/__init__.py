"""Calibrated fine-tuning: bring the classes back that the fine-tuning data lacked."""

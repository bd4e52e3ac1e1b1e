"""Methods side by side on one's own tasks: chosen on validation pictures, trained again, tested once."""

"""Methods side by side on one's own tasks: chosen on validation images, trained again, tested once."""

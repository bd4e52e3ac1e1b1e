"""Compare methods on the user's own tasks: selected on validation images, trained again, tested once."""

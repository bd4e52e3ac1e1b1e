"""Sources of captioner targets that need generated scenes or single drawings."""

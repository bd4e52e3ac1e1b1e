"""Generated worlds with exact ground truth: scenes, clips, documents, screens, camera traps."""

"""Any collection with conversations: exact answers, and boxes with an IoU of at least .5."""

from __future__ import annotations

from foveate.mllm.suite import Suite, read_conversations
from foveate.mllm.suites.scenes import score

SUITE = Suite("Conversations", "accuracy", read_conversations, score)

"""IntentQA: `val.csv` or `test.csv` as published, or IG-VLM's `IntentQA.csv`; videos and id map are NExT-QA's."""

from __future__ import annotations

from foveate.mllm.video.questions import QuestionSet
from foveate.mllm.video.sets.nextqa import read

SET = QuestionSet("IntentQA", read, published=(2044, 2134))

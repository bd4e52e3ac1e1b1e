"""IntentQA: `val.csv` or `test.csv` as published, or IG-VLM's `IntentQA.csv`; videos and id map are NExT-QA's."""

from __future__ import annotations

from foveate.records.video_questions import QuestionSet
from foveate.video.sets.nextqa import read

SET = QuestionSet("IntentQA", read, published=(2044, 2134))

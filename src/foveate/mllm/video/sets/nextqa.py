"""NExT-QA: `val.csv` or `test.csv` as published, with `map_vid_vidorID.json` beside it, or IG-VLM's `NExT_QA.csv`.

The videos are those of VidOR, which lie in folders by number; the map names these. Of the questions in three of val two
options are equal, so that only the number of the right one counts.
"""

from __future__ import annotations

from pathlib import Path

from foveate.core.json_fields import read_table
from foveate.mllm.video.questions import QuestionSet, VideoQuestion, read_choices

_MAP = "map_vid_vidorID.json"


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; clips are looked for by the map's path, then by number."""
    paths = read_table(path.with_name(_MAP)) if path.with_name(_MAP).is_file() else {}
    return read_choices(path, name_clip=lambda video: tuple(dict.fromkeys((str(paths.get(video, video)), video))))


SET = QuestionSet("NExT-QA", read, published=(4996, 8564))

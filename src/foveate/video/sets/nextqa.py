"""NExT-QA: `val.csv` or `test.csv` as published, with `map_vid_vidorID.json` beside it, or IG-VLM's `NExT_QA.csv`.

The videos are those of VidOR, which lie in folders by number; the map names these. Of the questions in three of val two
options are equal, so that only the number of the right one counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foveate.core.json_fields import read_table
from foveate.records.video_questions import FIVE_OPTIONS, Columns, QuestionSet, VideoQuestion, read_rows

_MAP = "map_vid_vidorID.json"
_PUBLISHED = Columns(("qid",), ("video", "video_id"), kind=("type",), options=FIVE_OPTIONS, by_number=True)
_LISTED = Columns(options=FIVE_OPTIONS)
_NUMBERED = Columns(answer=("answer_number",), options=FIVE_OPTIONS, by_number=True)


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; clips are looked for by the map's path, then by number."""
    paths = read_table(path.with_name(_MAP)) if path.with_name(_MAP).is_file() else {}
    rows = read_rows(path)
    is_published = "qid" in rows[0]
    columns = _PUBLISHED if is_published else _NUMBERED if "answer_number" in rows[0] else _LISTED
    questions = columns.read(
        rows, path, name_clip=lambda video: tuple(dict.fromkeys((str(paths.get(video, video)), video)))
    )
    # As published, questions are counted by video.
    return [replace(each, id=f"{each.clip[-1]}_{each.id}") for each in questions] if is_published else questions


SET = QuestionSet("NExT-QA", read, published=(4996, 8564))

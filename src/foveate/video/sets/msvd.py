"""MSVD-QA: `val_qa.json` or `test_qa.json` with `youtube_mapping.txt` beside it, or IG-VLM's `MSVD_QA.csv` (val).

Clips are called by their place on YouTube, or vid1 to vid1970; the mapping has both names on a line. Published scores
are mostly of test (13,157 questions), those of SlowFast-LLaVA of val: other questions, other numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records.video_questions import Columns, QuestionSet, VideoQuestion, read_entries, read_rows

_MAPPING = "youtube_mapping.txt"
PUBLISHED = Columns(("id",), ("video_id",), kind=("category_id",))
"""Of the JSON of MSVD-QA and MSRVTT-QA."""


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; clips are looked for by both names."""
    if path.suffix != ".json":
        rows = read_rows(path)
        return [
            replace(each, clip=(*each.clip, f"vid{row.get('video_id', '')}"))
            for each, row in zip(Columns().read(rows, path), rows, strict=True)
        ]
    names = _read_mapping(path.with_name(_MAPPING))

    def name_clip(number: str) -> tuple[str, ...]:
        return tuple(name for name in (names.get(f"vid{number}", ""), f"vid{number}") if name)

    return PUBLISHED.read(read_entries(path), path, name_clip=name_clip)


def _read_mapping(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    # What is no UTF-8 is the name of no clip, and must not end in a traceback.
    content = path.read_text(encoding="utf-8", errors="replace")
    pairs = [line.split() for line in content.splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: expected two names on a line, such as -4wsuPCjDBc_5_15 vid1")
    return {number: name for name, number in pairs}


SET = QuestionSet("MSVD-QA", read, published=(6415, 13157))

"""What can be done with each family of transformers: the matrix of docs/how-to/run-elsewhere.md.

`test_foreign_matrix.py` tries every cell; `python tests/multimodal/foreign_matrix.py` writes the page anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-elsewhere.md"
START, END = "<!-- matrix -->", "<!-- /matrix -->"
COLUMNS = ("ask", "stream", "chat", "batch", "boxes", "regions", "image sets", "video", "serve", "tune", "export")
REASONS = {
    "single": "it answers single questions; its processor takes no second turn",
    "one": "its processor takes one image for a question",
    "padding": "its processor pads on the right, so questions are answered one after another",
    "alone": "its processor counts other tokens in a batch than alone, so questions are answered one after another",
    "none": "its makers document no boxes; `--unit-of-boxes` reads them, if a model was tuned on some",
    "video": "its tokens of an image are no grid, so nothing is pooled",
    "export": "it is in the format of transformers already; nothing is written anew",
}
# Families with a unit of boxes of which no test builds a model.
UNTRIED = {
    "florence2": "Florence-2",
    "gemma4": "Gemma 4",
    "gemma4_unified": "Gemma 4 (unified)",
    "glm46v": "GLM-4.6V",
    "glm4v_moe": "GLM-4.5V",
    "molmo2": "Molmo2",
    "qwen3_vl_moe": "Qwen3-VL with experts",
}
# Families that tests/video asks about clips, and that are not asked about images.
CLIPS_ALONE = {"llava_next_video": "LLaVA-NeXT-Video", "vipllava": "ViP-LLaVA"}


class Row(NamedTuple):
    """A family: its name, and the reason of each column that it does not have; every other one it has."""

    name: str
    no: dict[str, str]


_MADE = {"export": "export"}
MATRIX = {
    "gemma3": Row("Gemma 3", {"boxes": "none", **_MADE}),
    "glm4v": Row("GLM-4.1V", _MADE),
    "idefics3": Row("Idefics3", {"boxes": "none", **_MADE}),
    "internvl": Row("InternVL2, InternVL3", _MADE),
    "kosmos-2": Row(
        "Kosmos-2",
        {"chat": "single", "batch": "padding", "image sets": "one", "video": "video", **_MADE},
    ),
    "llava": Row("LLaVA-1.5", _MADE),
    "llava_next": Row("LLaVA-NeXT", {"boxes": "none", **_MADE}),
    "llava_onevision": Row("LLaVA-OneVision", {"batch": "alone", "boxes": "none", **_MADE}),
    "paligemma": Row("PaliGemma", {"chat": "single", **_MADE}),
    "qwen2_5_vl": Row("Qwen2.5-VL", _MADE),
    "qwen2_vl": Row("Qwen2-VL", _MADE),
    "qwen3_vl": Row("Qwen3-VL", _MADE),
    "smolvlm": Row("SmolVLM", {"boxes": "none", **_MADE}),
}


def write_matrix() -> str:
    """Return the table and the reasons behind its letters."""
    used = [reason for reason in REASONS if any(reason in row.no.values() for row in MATRIX.values())]
    letters = {reason: chr(ord("a") + number) for number, reason in enumerate(used)}
    lines = [f"| family | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
    for row in sorted(MATRIX.values()):
        cells = [f"no ({letters[row.no[column]]})" if column in row.no else "yes" for column in COLUMNS]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    notes = [f"- ({letters[reason]}) {REASONS[reason]}." for reason in used]
    others = [
        f"Tried with clips alone: {', '.join(CLIPS_ALONE.values())}.",
        f"Not tried, as no test has a model of them: {', '.join(UNTRIED.values())}.",
    ]
    return "\n".join([*lines, "", *notes, "", *others])


def fill_page(text: str) -> str:
    """Return the page with the matrix as it is now."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{write_matrix()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(fill_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

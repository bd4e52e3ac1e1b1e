"""Built-in clip art and emoji: one named thing in the middle of a plain background.

All statements hold by construction, see `records.builtin.singles`. Images without a plain name (label `concept`) are
left out, whatever their titles claim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.caption.targets.material import Material
from foveate.caption.targets.settings import TargetSettings
from foveate.core.errors import UserError
from foveate.records.captions import select_alt_text
from foveate.records.collection import Collection
from foveate_labs.worlds.scenes.language import add_article, is_plural

_STYLES = {"clipart": "clip art", "noto": "an emoji", "twemoji": "an emoji"}


def read(collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int) -> list[Material]:
    """Read material of rows that are named clip art or emoji of the built-in collections."""
    try:
        styles, concepts = (collection.label_values(field) for field in ("style", "concept"))
        groups = collection.label_values("subcategory")
    except UserError:  # the collection has other labels: none of its images is built in
        return []
    materials = []
    for row in rows.tolist():
        concept, style = str(concepts[row]), str(styles[row])
        if not concept or style not in _STYLES:
            continue
        captions = collection.read_captions(row)
        keywords = next((caption.text for caption in captions if caption.kind == "keywords"), "")
        materials.append(
            Material(
                row=row,
                key=collection.keys[row],
                source="singles",
                short=_short_captions(concept, style),
                formats=write_formats(concept, style, str(groups[row])),
                alt=select_alt_text(captions, settings.alt_kinds),
                alt_clean=True,
                facts=(concept, keywords, str(groups[row])),
            )
        )
    return materials


def _short_captions(concept: str, style: str) -> tuple[str, ...]:
    thing = add_article(concept)
    first = f"{thing[0].upper()}{thing[1:]}"
    return (
        f"{first} on a plain ground.",
        f"A drawing of {thing}.",
        f"{first} alone in the middle of the picture.",
        f"{first} in the style of {_STYLES[style]}.",
        f"A picture of {thing} on a plain ground.",
    )


def write_formats(concept: str, style: str, group: str) -> dict[str, str]:
    """Write the exact text of each format."""
    thing = add_article(concept)
    are = "are" if is_plural(concept) else "is"
    kind = " and ".join(part.replace("-", " ").replace("_", " ") for part in group.split("/") if part)
    ssc = f"{thing[0].upper()}{thing[1:]} on a plain ground."
    dsc = [
        f"A drawing of {thing}.",
        f"The {concept} {are} in the middle of the picture.",
        "The background is plain.",
    ]
    dense = [
        f"A square picture that shows a drawing of {thing}.",
        f"The drawing is in the style of {_STYLES[style]}.",
        f"The {concept} {are} in the middle of the picture.",
        f"The {concept} {are} the only named thing in the picture.",
        f"There is nothing to the left of the {concept}.",
        f"There is nothing to the right of the {concept}.",
        f"There is nothing above the {concept}.",
        f"There is nothing below the {concept}.",
        *([f"The drawing belongs to the group {kind}."] if kind else []),
        "The background is plain.",
        "The background is drawn in one pale colour.",
    ]
    return {"ssc": ssc, "dsc": " ".join(dsc), "dsc_plus": " ".join(dense)}

"""How the taggers of VESL agree and what they cost, on the stored captions and on texts nobody tuned anything for.

    python benchmarks/phrases.py

The second set are the English descriptions of at least four words in the shipped clip art: no truth exists for them, so
they say how far two taggers agree, not who is right. Needs the extra `spacy`.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import foveate
from foveate.caption.vesl.phrases import PhraseSettings, score_phrases
from foveate.caption.vesl.tagging import open_extractor

ROOT = Path(__file__).resolve().parents[1]
TAGGERS: dict[str, dict[str, Any]] = {
    "rules": {"tagger": "rules"},
    "spacy tags": {"tagger": "spacy", "chunker": "tags"},
    "spacy parser": {"tagger": "spacy", "chunker": "parser"},
}


def main() -> None:
    golden = json.loads((ROOT / "tests" / "goldens" / "cloc" / "noun_phrases.json").read_text(encoding="utf-8"))
    captions = [case["caption"] for case in golden["cases"]]
    truth = [case["phrases"] for case in golden["cases"]]
    table = pq.read_table(Path(foveate.__file__).parent / "data" / "clipart.parquet")
    texts = table["description"].to_pylist()
    texts = sorted({text for text in texts if text and len(text.split()) >= 4 and text.isascii()})
    phrases = {}
    for tagger, options in TAGGERS.items():
        for recipe in ("paper", "clean"):
            extract = open_extractor(PhraseSettings(recipe=recipe, **options))
            scores = score_phrases([extract(caption).phrases for caption in captions], truth)
            print(f"{tagger} {recipe}, {len(captions)} stored captions: F1 {scores['f1']:.3f}")
        extract = open_extractor(PhraseSettings(**options))
        began = time.process_time()
        phrases[tagger] = [extract(text).phrases for text in texts]
        print(f"{tagger}: {(time.process_time() - began) / len(texts) * 1e3:.3f} ms of CPU a text")
    for first, second in itertools.combinations(TAGGERS, 2):
        scores = score_phrases(phrases[first], phrases[second])
        print(f"{first} and {second}, {len(texts)} descriptions: F1 {scores['f1']:.3f}")


if __name__ == "__main__":
    main()

"""How the taggers of VESL agree and what they cost, on the stored captions and on texts nobody tuned anything for.

    python benchmarks/phrases.py

The second set are the English descriptions of at least four words in the shipped clip art: no truth exists for them, so
they say how far two taggers agree, not who is right. Needs the extra `spacy`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq

import foveate
from foveate.caption.vesl.phrases import PhraseSettings, phrase_scores
from foveate.caption.vesl.tagging import open_extractor

ROOT = Path(__file__).resolve().parents[1]
TAGGERS = ("rules", "spacy_tags", "spacy")


def main() -> None:
    golden = json.loads((ROOT / "tests" / "goldens" / "cloc" / "noun_phrases.json").read_text(encoding="utf-8"))
    captions = [case["caption"] for case in golden["cases"]]
    truth = [case["phrases"] for case in golden["cases"]]
    table = pq.read_table(Path(foveate.__file__).parent / "data" / "clipart.parquet")
    texts = table["description"].to_pylist()
    texts = sorted({text for text in texts if text and len(text.split()) >= 4 and text.isascii()})
    found = {}
    for tagger in TAGGERS:
        for recipe in ("paper", "clean"):
            extract = open_extractor(PhraseSettings(tagger=tagger, recipe=recipe))
            scores = phrase_scores([extract(caption).kept for caption in captions], truth)
            print(f"{tagger} {recipe}, {len(captions)} stored captions: F1 {scores['f1']:.3f}")
        extract = open_extractor(PhraseSettings(tagger=tagger))
        began = time.process_time()
        found[tagger] = [extract(text).kept for text in texts]
        print(f"{tagger}: {(time.process_time() - began) / len(texts) * 1e3:.3f} ms of CPU a text")
    for first, second in (("rules", "spacy_tags"), ("rules", "spacy"), ("spacy_tags", "spacy")):
        scores = phrase_scores(found[first], found[second])
        print(f"{first} and {second}, {len(texts)} descriptions: F1 {scores['f1']:.3f}")


if __name__ == "__main__":
    main()

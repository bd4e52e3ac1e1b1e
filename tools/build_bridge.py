"""Write the shipped model `bridge`: sentence vectors of the names of ImageNet's and COCO's classes.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python tools/build_bridge.py wordnet/usr/share/wordnet

A class's vector is the mean of four unit vectors, scaled to unit length: those of its name, of "a photo of a NAME", of
its name with WordNet's definition, and the mean of those of its WordNet hypernyms below the most general ones. The
names are open_clip's, the order of synsets is timm's. Which texts to take was measured (docs/methods/bridge.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from manifest import note_files
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from foveate.core.files import write_json_atomically, write_text_atomically
from foveate.core.model_folder import CARD, WEIGHTS
from foveate.core.paths import DATA
from foveate.vision.bridge import BridgeEncoder
from foveate.vision.detectors import CLASS_NAMES
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings, RegionSettings
from foveate.vision.minilm import SentenceEncoder

# Hypernyms of nearly everything, which would make all classes alike.
_GENERAL = frozenset(
    "organism, living thing, whole, object, physical entity, entity, artifact, instrumentality, chordate, vertebrate, "
    "placental, matter, abstraction, unit, group, thing, psychological feature".split(", ")
)
_SYNSETS = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"


_CARD = """---
license: apache-2.0
library_name: foveate
pipeline_tag: zero-shot-image-classification
---
# bridge: an image and text encoder that nobody trained

It misses what has no class of ImageNet or COCO near it (tweezers, a pyramid), letters, and many drawings: on built-in
emoji, clip art and scenes .17 of the first five images are right, where a CLOC of the tour has .33. Three of four
searches for what no image shows are refused, and so is one of ten whose first hit is right.

EfficientNet-Lite0's 1,000 ImageNet classes and NanoDet-g's 80 of COCO, with the MiniLM sentence vectors of their names:
an image is the sum of the names' vectors, weighted by the roots of their probabilities (after ConSE, arXiv 1312.5650).
This folder holds the vectors only; the networks come with Foveate and its dependencies. No network is needed.

## How to use it

`foveate index my-folder`, then `foveate search my-folder-index "a cat"`; `foveate locate holiday.jpg "a cat"`; in
Python `foveate.open_model()`.

## Measured

Contents alone, share of right images among the first five, 95 % intervals (controls and commands:
docs/methods/bridge.md).

| | plain queries | harder ones |
|---|---|---|
| 267 photographs (gcompris) | .65 (.48 to .80) | .73 (.57 to .88) |
| 962 stamps (tuxpaint) | .53 (.37 to .68) | .56 (.36 to .75) |
| 900 emoji, clip art and scenes | .17 (.09 to .26) | .21 (.14 to .30) |

A phrase's box on composites of photographs and cut-outs, IoU at least .5: .57 of 210; the best of its proposals .84.

## Limits

It does not know people by age, trade or name, and must not be used to identify anybody or to decide about a person.
ImageNet's classes are a third animals; its photographs and names carry the biases of their time.
The names' definitions and hypernyms are WordNet's (NOTICE-wordnet.md).
"""


@dataclass(frozen=True)
class Synset:
    """A noun of WordNet: its first word, its definition, and the offsets of its direct hypernyms."""

    word: str
    definition: str
    hypernyms: tuple[str, ...]


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """Read WordNet's nouns by offset, in the format of wndb(5WN)."""
    synsets = {}
    for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the license, in front of the table
            continue
        head, _, gloss = line.partition("|")
        fields = head.split()
        # The number of words is hexadecimal; each has a sense number behind it.
        pointers = 4 + 2 * int(fields[3], 16)
        rows = [fields[start : start + 4] for start in range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4)]
        hypernyms = tuple(offset for kind, offset, part, _ in rows if kind in ("@", "@i") and part == "n")
        synsets[fields[0]] = Synset(fields[4].replace("_", " "), gloss.strip().partition(";")[0], hypernyms)
    return synsets


def list_hypernyms(synsets: dict[str, Synset], offset: str) -> list[str]:
    """List the first words of all hypernyms, the nearest first, without the most general ones."""
    words, level, seen = [], [offset], {offset}
    while level:
        level = [up for each in level for up in synsets[each].hypernyms if up not in seen and not seen.add(up)]
        words += [synsets[each].word for each in level]
    return [word for word in words if word not in _GENERAL]


def embed_classes(synsets: dict[str, Synset], encode: SentenceEncoder) -> torch.Tensor:
    """Return the unit vectors [1000, E] of ImageNet's classes."""
    rows = []
    for name, synset_id in zip(IMAGENET_CLASSNAMES, _SYNSETS.read_text(encoding="utf-8").split(), strict=True):
        offset = synset_id.removeprefix("n")
        texts = [name, f"a photo of a {name}", f"{name}: {synsets[offset].definition}"]
        vectors_TE = encode([*texts, *(list_hypernyms(synsets, offset) or [name])])
        hypernyms_E = F.normalize(vectors_TE[len(texts) :].mean(dim=0), dim=0)
        rows.append(F.normalize(vectors_TE[: len(texts)].sum(dim=0) + hypernyms_E, dim=0))
    return torch.stack(rows)


def build(wordnet: Path) -> Path:
    """Write the model folder into the package's data; return where it is."""
    encode = SentenceEncoder()
    settings = LocalizerSettings(
        image_encoder={"kind": "bridge"},
        text_encoder={"kind": "minilm", "projection": "none"},
        embed_dim=encode.width,
        regions=RegionSettings(method="none"),
    )
    model = LocalizingModel(settings)
    # A location's vector comes from the classifier itself: boxes need no pass of their own.
    model.localizes = True
    assert isinstance(model.image_encoder, BridgeEncoder)
    with torch.no_grad():
        model.image_encoder.class_vectors_CE.copy_(embed_classes(read_wordnet(wordnet), encode))
        names = [encode([text.format(name) for name in CLASS_NAMES]) for text in ("{}", "a photo of a {}")]
        model.image_encoder.detector_vectors_NE.copy_(F.normalize(names[0] + names[1], dim=-1))
    folder = save_model(model.half(), DATA / "bridge")
    write_json_atomically(folder / "names.json", {"classes": IMAGENET_CLASSNAMES, "detector": list(CLASS_NAMES)})
    write_text_atomically(folder / CARD, _CARD)
    weights = folder / WEIGHTS
    note_files("weights", weights)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))

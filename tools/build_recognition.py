"""Write the names that `foveate ask` gives to things in photographs, and the statistics of its training scenes.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python tools/build_recognition.py wordnet/usr/share/wordnet

`names.json` holds ImageNet's classes and all of their hypernyms in WordNet, with their words, which of them are common
names ("a cat"), and the nodes that a name of COCO stands for. `scenes.safetensors` holds what
`foveate.multimodal.picture_check` compares a picture with: mean and main directions of the features of generated
scenes, and the direction from them to the photographs that they have as grounds.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from build_bridge import _GENERAL
from manifest import note_files
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image

from foveate.core.files import (
    write_text_atomically,
)
from foveate.core.paths import DATA
from foveate.core.seeds import generator
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.picture_check import STATISTICS, PictureCheck
from foveate.multimodal.prepare import encode_sample
from foveate.vision.detectors import CLASS_NAMES
from foveate_labs.worlds.scenes.counting import draw_counting_scene
from foveate_labs.worlds.scenes.grounds import HELD_OUT_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load
from foveate_labs.worlds.scenes.image_sets import SETS, draw_image_set
from foveate_labs.worlds.scenes.scene import draw_scene

_SYNSETS = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
TARGET = DATA / "recognition"
# Names that people use, by the first word of a synset; the nearest of them stands beside a class, or in its place.
COMMON = frozenset(
    "animal, bird, fish, cat, domestic cat, dog, snake, lizard, turtle, frog, salamander, spider, insect, beetle, "
    "butterfly, monkey, ape, bear, wolf, fox, wild dog, big cat, shark, crab, snail, sheep, cow, ox, whale, seal, "
    "rabbit, fruit, vegetable, mushroom, flower, ship, boat, car, truck, airplane, bicycle, bus, train, building, "
    "place of worship, house, church, tower, bridge, fence, furniture, chair, table, cabinet, seat, bed, garment, "
    "hat, cap, shoe, footwear, bag, ball, weapon, gun, musical instrument, stringed instrument, drum, wind "
    "instrument, keyboard instrument, computer, telephone, clock, watch, lamp, bottle, cup, pot, pan, dish, bowl, "
    "glass, tool, hand tool, cutter, knife, vehicle, home appliance, kitchen appliance, toilet, mountain, body of "
    "water, plant, food, bread, person, owl, duck, goose, swan, parrot, penguin, elephant, kangaroo, crocodile, "
    "gorilla, weasel, otter, skunk, antelope, goat, pig, horse, camel, deer, mouse, rat, squirrel, hamster, "
    "porcupine, lobster, jellyfish, worm, starfish, bee, ant, fly, dragonfly, moth, woodpecker, hummingbird, eagle, "
    "hawk, vulture, gull, heron, crane, stork, wading bird, grouse, finch, ray, eel, salmon, dinosaur, toy, box, "
    "basket, curtain, screen, camera, lock, umbrella, shop, dam, sailing vessel, wheel, aircraft, balloon, tank, "
    "racket, helmet, mask, towel, rug, cake, ice cream, sandwich, cheese, pepper, cabbage, squash, apple, lemon, "
    "orange, hen, rooster, monitor, radio, printer, refrigerator, oven, stove, washer, vacuum, iron, kettle, "
    "teapot, spoon, fork, brush, comb, pen, pencil, paper, book, geological formation, crustacean, reptile, rodent, "
    "equine, viverrine, terrier, hound, spaniel, retriever, sheepdog, jar, barrel, tent, guitar, piano, violin, "
    "mollusk, fabric, armor, swimsuit, trouser, skirt, coat, sweater, dress, sock, glove, marine animal, raptorial "
    "bird, bird of prey, domestic fowl, gallinaceous bird, aquatic bird, sea cow, corvine bird, oscine, electronic "
    "equipment, timepiece, writing implement, lens cap, measuring instrument, optical instrument, spacecraft, "
    "locomotive, motorcycle, tractor, fungus, coral, sloth, lemur, memorial, edible fruit, wildcat".split(", ")
)
# What WordNet calls it, and what people do.
DISPLAY = {
    "edible fruit": "fruit",
    "memorial": "monument",
    "domestic cat": "cat",
    "home appliance": "appliance",
    "hand tool": "tool",
    "body of water": "water",
    "geological formation": "landscape",
    "electronic equipment": "electronic device",
    "oscine": "songbird",
    "corvine bird": "crow or magpie",
    "viverrine": "mongoose or civet",
    "equine": "horse or zebra",
    "domestic fowl": "chicken",
    "raptorial bird": "bird of prey",
}
# Classes whose name says less than a person would, or something else.
RENAMED = {"solar thermal collector": "solar panel", "tusker": "elephant", "ox": "cow or ox", "bittern bird": "bittern"}
# Words of users that are in no synset of ImageNet's classes and their hypernyms, by words that are.
ALIASES = {
    "kitten": "cat",
    "kitty": "cat",
    "puppy": "dog",
    "doggy": "dog",
    "bike": "bicycle",
    "cow": "cattle",
    "chicken": "hen",
    "rooster": "cock",
    "tv": "television",
    "cell phone": "cellular telephone",
    "couch": "sofa",
    "bunny": "rabbit",
    "donut": "doughnut",
    "sports ball": "ball",
    "wine glass": "goblet",
    "remote": "remote control",
    "man": "person",
    "woman": "person",
    "men": "person",
    "women": "person",
    "people": "person",
    "boy": "person",
    "girl": "person",
    "child": "person",
    "children": "person",
    "human": "person",
    "someone": "person",
    "anyone": "person",
    "somebody": "person",
    "anybody": "person",
    "lady": "person",
    "guy": "person",
    "kid": "person",
    "hedgehog": "porcupine",
    "tortoise": "turtle",
}
# COCO's classes that ImageNet lacks, by what they are, the usual name of their kind first.
DETECTOR_PARENTS = {
    "person": "human",
    "giraffe": "animal|mammal",
    "cow": "animal|mammal|cattle",
    "horse": "animal|mammal",
    "scissors": "tool|cutting tool",
    "fire hydrant": "hydrant",
    "stop sign": "sign|street sign",
    "potted plant": "plant|houseplant|pot plant|flower pot",
    "cake": "food|dessert|cupcake",
    "donut": "food|doughnut",
    "sandwich": "food",
    "carrot": "vegetable|food",
    "apple": "fruit|food",
    "book": "publication",
    "bed": "furniture",
    "tv": "television|monitor|screen",
    "kite": "toy",
    "surfboard": "board",
    "skateboard": "board",
    "fork": "cutlery",
    "knife": "cutlery|tool",
    "spoon": "cutlery",
    "tie": "necktie",
    "handbag": "bag|purse",
    "suitcase": "luggage|bag",
    "toothbrush": "brush",
    "clock": "timepiece",
    "bench": "seat|furniture",
    "chair": "furniture|seat",
    "couch": "furniture|seat",
    "bird": "animal",
    "cat": "animal|mammal",
    "dog": "animal|mammal",
    "car": "vehicle",
    "bus": "vehicle",
    "truck": "vehicle|lorry",
    "train": "vehicle",
    "boat": "vehicle|ship",
    "airplane": "aircraft|vehicle|plane|jet",
    "bicycle": "vehicle",
    "motorcycle": "vehicle|motorbike",
    "wine glass": "glass",
    "cup": "mug|coffee cup|tea cup|teacup",
    "vase": "vessel",
    "bottle": "vessel",
    "bowl": "vessel|dish",
    "teddy bear": "toy|teddy",
    "refrigerator": "fridge|appliance",
}


def read_synsets(folder: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Read WordNet's nouns: offset -> words, offsets of direct hypernyms; the format is that of wndb(5WN)."""
    synsets = {}
    for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the license, in front of the table
            continue
        fields = line.partition("|")[0].split()
        words = int(fields[3], 16)
        pointers = 4 + 2 * words
        rows = [fields[start : start + 4] for start in range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4)]
        synsets[fields[0]] = (
            tuple(fields[4 + 2 * number].replace("_", " ").casefold() for number in range(words)),
            tuple(offset for kind, offset, part, _ in rows if kind in ("@", "@i") and part == "n"),
        )
    return synsets


def build_names(wordnet: Path) -> None:
    """Write the classes, their hypernyms and what users call them."""
    synsets = read_synsets(wordnet)
    offsets = [line.removeprefix("n") for line in _SYNSETS.read_text(encoding="utf-8").split()]
    numbers = {offset: number for number, offset in enumerate(offsets)}
    queue = list(offsets)
    for offset in queue:
        for up in synsets[offset][1]:
            if up not in numbers and synsets[up][0][0] not in _GENERAL:
                numbers[up] = len(numbers)
                queue.append(up)
    nodes = []
    for number, offset in enumerate(queue):
        words, hypernyms = synsets[offset]
        if number < len(IMAGENET_CLASSNAMES):
            # open_clip's names are those of people: "great white shark" in place of "white shark".
            name = IMAGENET_CLASSNAMES[number]
            words = (RENAMED.get(name, name), name, *(word for word in words if word != name.casefold()))
        entry: dict[str, object] = {"words": words, "up": [numbers[up] for up in hypernyms if up in numbers]}
        if number >= len(IMAGENET_CLASSNAMES) and words[0] in COMMON:
            entry["name"] = DISPLAY.get(words[0], words[0])
        nodes.append(entry)
    content = {"nodes": nodes, "detector": list(CLASS_NAMES), "aliases": ALIASES, "detector_parents": DETECTOR_PARENTS}
    TARGET.mkdir(exist_ok=True)
    write_text_atomically(TARGET / "names.json", json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def draw_pictures(split: str, count: int) -> Iterator[bytes]:
    """Draw scenes of all kinds of a training, at several sizes and encodings, as they may be asked about."""
    for index in range(count):
        rng = generator("recognition scenes", split, index)
        size = int(rng.choice([160, 224, 224, 224, 320, 448]))
        kind = index % 8
        if kind in (3, 7):
            image = draw_counting_scene(seed=11, split=split, index=index, size=size).image
        elif kind == 2:
            form = SETS[index // 8 % len(SETS)]
            image = draw_image_set(form, seed=11, split=split, index=index, size=size).scenes[0].image
        else:
            small = index % 16 == 1
            image = draw_scene(seed=11, split=split, index=index, size=448 if small else size, small=small).image
        yield _encode(rng, image.convert("RGB"))


def _encode(rng: np.random.Generator, image: Image.Image) -> bytes:
    """Write an image as a file, some of them resized as users' are."""
    if rng.random() < 0.3:
        scale = float(rng.choice([0.7, 1.3, 2.0, 3.0]))
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if rng.random() < 0.5:
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def draw_plain_pictures(count: int) -> Iterator[bytes]:
    """Crop the photographs that scenes have as grounds, with nothing on them, some of them nearly whole."""
    photographs = (*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS)
    for index in range(count):
        rng = generator("recognition grounds", index)
        image = load(photographs[index % len(photographs)])
        if rng.random() < 0.4:
            width, height = (round(side * rng.uniform(0.8, 1)) for side in image.size)
        else:
            width = height = round(min(image.size) * rng.uniform(0.4, 1))
        left, top = round((image.width - width) * rng.random()), round((image.height - height) * rng.random())
        image = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.3:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.5:
            pixels_HW3 = np.asarray(image, np.float32) * rng.uniform(0.85, 1.15, 3) * rng.uniform(0.85, 1.2)
            image = Image.fromarray(pixels_HW3.clip(0, 255).astype(np.uint8))
        scale = int(rng.choice([160, 224, 224, 320, 448])) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        yield _encode(rng, image.resize(size, Image.Resampling.BICUBIC))


@torch.inference_mode()
def embed_pictures(model: Mllm, pictures: Iterable[bytes]) -> torch.Tensor:
    """Return the vectors [B, D] of pictures as `ask` reads them."""
    vectors = (encode_sample(model.loaded, [picture])[1][0].vector_D for picture in pictures)
    return torch.stack([vector_D for vector_D in vectors if vector_D is not None])


def build_statistics(*, count: int) -> None:
    """Write the statistics of scenes with the grounds of training, and of those with the grounds of tests.

    Three quarters of the scenes are measured, the others choose the limits; all are compared with their grounds. The
    seed is none that a training or an evaluation draws with.
    """
    model = open_mllm("mini")
    assert isinstance(model, Mllm)
    kinds, scenes = [], []
    for split in ("train", "test"):
        scenes.append(vectors_BD := embed_pictures(model, draw_pictures(split, count)))
        is_limit_B = torch.arange(count) % 4 == 3
        check = PictureCheck.fit(vectors_BD[~is_limit_B]).choose_limit(vectors_BD[is_limit_B])
        kinds += check.kinds
    plain_PD = embed_pictures(model, draw_plain_pictures(2 * count))
    PictureCheck(kinds).fit_plain(torch.cat(scenes), plain_PD).save(STATISTICS)
    note_files("weights", STATISTICS)
    print(f"limits {[round(float(kind['limit_1']), 3) for kind in kinds]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("--scenes", type=int, default=2000, help="of each kind")
    options = parser.parse_args()
    build_names(options.wordnet)
    build_statistics(count=options.scenes)

"""Two folders of real images for benchmarks/search_quality.py, what their images are called, and queries to them.

Stamps: 962 cut-outs of the Debian package tuxpaint-stamps-default, with texts in up to 70 languages. Photographs: 267
of gcompris-qt-data, of animals, tools, buildings and power stations. Both are GPL: read where they are installed or
unpacked (`dpkg -x PACKAGE.deb FOLDER`), never shipped. The queries were written before any of them was searched; what
is right was corrected for four of them after a look at the hits ("The letter X" is no answer to "writing a letter").
"""

from __future__ import annotations

from pathlib import Path

from foveate.records.bm25 import split_terms
from foveate.records.collection import Collection
from foveate.studies.rcc import read_rcc

Queries = dict[str, tuple[str, str]]
_STAMPS = "usr/share/tuxpaint/stamps"
_RESOURCES = "usr/share/gcompris-qt/rcc"
_PHOTOGRAPHS = (
    "erase",
    "explore_world_animals",
    "explore_farm_animals",
    "explore_monuments",
    "categorization",
    "details",
)

# query -> words of names, pattern of "folder/name"
STAMPS_PLAIN: Queries = {
    "a boat": ("boat sailboat ship canoe tugboat", "vehicles/ship/(?!.*bathyscape)"),
    "a car": ("car taxi", "vehicles/(auto|race)/(?!truck)|sedan_police|mustang"),
    "a dog": ("dog poodle puppy dingo", ""),
    "a cat": ("cat kitten blackcat", ""),
    "a bird": ("bird parrot chick bluebird", "animals/birds"),
    "a fish": ("fish shark tuna", "animals/fish/(?!lobster|shrimp)"),
    "a flower": ("flower rose tulip sunflower daisy daffodil", "plants/flowers/(?!plastic)"),
    "a tree": ("tree palm", "plants/trees/(?!pinecone|rambutan)"),
    "a house": (
        "house home cottage",
        "town/houses/cartoon/(blacksmith|city|farm|fishery|hunter|inn|monastery|pinkhome|swisshome|tavern|townhall"
        "|university|wooden_cottage)",
    ),
    "an apple": ("apple", ""),
    "a mushroom": ("mushroom toadstool cep", "plants/mushrooms"),
    "a clock": ("clock watch stopwatch clockface", ""),
    "a hat": ("hat cap helmet", "clothes/hats|helmet|cap$|hat$|hat2$"),
    "a heart": ("heart", ""),
    "a computer": ("computer laptop monitor", ""),
    "a telephone": ("phone telephone mobile", ""),
    "a guitar": ("guitar", ""),
    "a star": ("star", ""),
    "a cup of coffee": ("coffee mug cup espresso expresso coffeecup", ""),
    "a woman": ("woman girl lady mermaid", "girlface|head_female"),
}
STAMPS_HARDER: Queries = {
    "something to eat": ("", "^food/(?!spices)|Candy|candy|pudding|Mince_Pie|Roast_turkey|chocolate"),
    "something to drink": ("", "coffeecup|expresso|mug$|teapot|dishes/glass"),
    "a wild animal": (
        "lion tiger elephant bear wolf leopard gorilla zebra giraffe rhinoceros hippopotamus crocodile fox",
        "mammals/(apes|deer|bears/(bear|european)|cats/(cheetah|lion|tiger))|marsupials/(?!cartoon)",
    ),
    "an insect": ("", "animals/insects/(?!Brown_slug|Woodlouse|cartoon/(snail|spider))"),
    "things to wear": ("", "^clothes/"),
    "playing music": ("", "hobbies/music"),
    "doing sports": ("", "^sports"),
    "bad weather": ("rain thunder lightning lightningbolt tornado storm snow snowflake cloud umbrella fog", ""),
    "money from Europe": ("", "money/euro|euro_"),
    "tools for repairs": ("", "household/tools/(?!cementmixer)"),
    "something that flies": (
        "airplane helicopter bee butterfly fly hoverfly hornet dragonfly ladybug balloon kite rocket plane",
        "vehicles/flight|animals/birds/(?!.*(ostrich|pengu|pengwin|tux|nandou|hen$|rooster|chicken|turkey))|f22",
    ),
    "a happy face": ("smiling smile grinning laughing", "faces/(happy|excited)"),
    "somebody at work": (
        "worker cook farmer teacher judge mechanic scientist doctor firefighter fireman policeman chemist nurse",
        "woman_police",
    ),
    "fruit from the garden": ("", "food/fruit"),
    "writing a letter": ("envelope pen pencil biro mailbox", "ballpoint|post_box|highlighter"),
}
PHOTOGRAPHS_PLAIN: Queries = {
    "a fish": ("fish", "^fishes/"),
    "a hammer": ("hammer", ""),
    "a screwdriver": ("screw", ""),
    "scissors": ("scissor", ""),
    "pliers": ("plier", ""),
    "a measuring tape": ("tape", ""),
    "tweezers": ("tweezer", ""),
    "a wrench": ("wrench", ""),
    "a windmill": ("windmill", ""),
    "solar panels": ("solar", ""),
    "a dam": ("dam", "^renewable/dam"),
    "a pyramid": ("pyramid", ""),
    "a castle": (
        "castle castillo chateaude chenonceau neuschwanstein egeskov fort",
        "chateaude|castillo|schwerinPalace|Carcassonne",
    ),
    "a church": ("cathedral eglise church", ""),
    "a bridge": ("bridge", "pontduGard"),
    "a temple": ("temple parthenon", ""),
    "a horse": ("horse", ""),
    "a giraffe": ("giraffe", ""),
    "a cat": ("cat kitten", ""),
    "a bird": (
        "heron kingfisher harrier penguin spoonbill swan toucan chicken duck owl gosling macaw bird",
        "",
    ),
}
PHOTOGRAPHS_HARDER: Queries = {
    "a wild animal": (
        "bison crocodile gorilla jaguar giraffe cheetah rhinoceros moose kangaroo panda bear gibbon lemur koala",
        "",
    ),
    "an animal that lives in water": ("dolphin crab narwhal penguin swan crocodile", "^fishes/"),
    "an insect": ("bee butterfly caterpillar", ""),
    "a monkey": ("gibbon gorilla macaque monkey lemur", ""),
    "an animal on a farm": ("calf goat horse chicken cow pig sheep duck gosling alpaca", ""),
    "something that flies": (
        "bee butterfly heron kingfisher harrier spoonbill swan toucan owl macaw duck",
        "flying_fox",
    ),
    "a reptile": ("chamaeleon chameleon crocodile dragon", ""),
    "tools for repairs": ("", "^tools/(?!scissors|nailCutter|tweezer|sickle)"),
    "renewable energy": ("windmill", "^renewable/"),
    "a famous building": ("", "^(egypt|france|germany|india|usa|wonders|monuments)/|OperaSidney|TajMahal|TourEiffel"),
    "a building in India": ("taj", "^india/|IndiaGate|kutubMinar|tajMahal|monuments/victoriaMemorial"),
    "a high tower": ("tower minar", "burj|empireState|TourEiffel"),
    "things for the kitchen": ("knife pan plate spoon cup", "buffetset"),
    "a statue of a person": ("statue rushmore redeemer", "lincolnMemorial|statueofLiberty"),
    "a painting": ("", "Gogh|Tanguy|Eglise_dAuvers"),
}
FOLDER_QUERIES = {
    "stamps": (STAMPS_PLAIN, STAMPS_HARDER),
    "photographs": (PHOTOGRAPHS_PLAIN, PHOTOGRAPHS_HARDER),
}


def find_folder(name: str, root: Path, work: Path) -> Path | None:
    """Return the folder of images of a package below `root`; None where the package is not there.

    Args:
        work: photographs are unpacked below this folder, since their package keeps them in files of Qt.
    """
    if name == "stamps":
        return root / _STAMPS if (root / _STAMPS).is_dir() else None
    folder = work / name
    if not folder.is_dir():
        if not (root / _RESOURCES / f"{_PHOTOGRAPHS[0]}.rcc").is_file():
            return None
        for resource in _PHOTOGRAPHS:
            _unpack(resource, root / _RESOURCES / f"{resource}.rcc", folder)
    return folder


def _unpack(resource: str, file: Path, folder: Path) -> None:
    """Write the photographs of a resource file, under the names that they have in it."""
    for name, content in read_rcc(file).items():
        path = Path(name)
        # Drawn letters, and the details that were cut out of a photograph.
        is_other = path.parent.name in ("alphabets", "numbers") or (
            resource == "details" and not path.stem.endswith("_background")
        )
        if path.suffix == ".webp" and "resource" in path.parts and not is_other:
            group = path.parent.name if resource in ("categorization", "explore_monuments") else resource
            target = folder / group / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def read_texts(name: str, collection: Collection, key: str) -> tuple[str, list[str]]:
    """Return what an image is called, for the judge, and the captions that a user could have."""
    stem = Path(key).name
    if name == "photographs":
        # As alt-texts are often found: "fish", "screw driver".
        caption = " ".join(term for term in split_terms(stem) if not term.isdigit() and term != "background")
        return caption, [caption]
    # The first line is English; the others are translations.
    lines = [caption.text.strip().splitlines()[0] for caption in collection.read_captions(collection.find_row(key))]
    return " ".join([*split_terms(stem), *(term for line in lines for term in split_terms(line))]), lines

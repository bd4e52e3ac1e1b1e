"""The animals of the generated survey: 48 species with habits, and drawings among the shipped emoji."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from foveate.core.errors import UserError
from foveate.core.seeds import uniform
from foveate.survey.taxa import Taxa, load_builtin_taxa
from foveate_labs.worlds.builtin import Cutout, load_cutouts

# Photographs of animals without their background, from the Debian package tuxpaint-stamps-default (GPL-2).
#
# They are read where a user installed or unpacked the package, and are not shipped. (Of gcompris-qt-data, 25.0.12, the
# photographs have a background and the images without one are cartoons: neither is used.)


INSTALLED = Path("/usr/share/tuxpaint/stamps")
"""Where the package is after its installation."""
_MAX_SIDE = 512  # of images of 320 pixels the largest animal has fewer
# Common name of a kind: files below the folder `animals`. Only what shows that species: the package's owl is snowy.
_FILES = """
gorilla: mammals/apes/gorilla
red fox: mammals/dogs/fox
lion: mammals/cats/lion, mammals/cats/lion-2
tiger: mammals/cats/tiger, mammals/cats/tiger_sumatran
horse: mammals/equines/horse
donkey: mammals/equines/donkey, mammals/equines/donkey_eating
plains zebra: mammals/equines/zebra, mammals/equines/zebra2
American bison: mammals/bovines/bison
cattle: mammals/bovines/bull, mammals/bovines/cow, mammals/bovines/cow_white
sheep: mammals/bovines/ram, mammals/bovines/sheep, mammals/bovines/sheep_lamb
goat: mammals/bovines/goat
wild boar: mammals/wildboar
dromedary: mammals/camel/dromedary
Bactrian camel: mammals/camel/camel
giraffe: mammals/giraffe
African elephant: mammals/elephant
hippopotamus: mammals/hippopotamus
house mouse: mammals/rodents/mouse
brown rat: mammals/rodents/rat
European rabbit: mammals/lagomorphs/rabbit, mammals/lagomorphs/rabbit-2, mammals/lagomorphs/rabbit_little
American beaver: mammals/rodents/beaver
brown bear: mammals/bears/european-bear
otter: mammals/aquatic/otter
badger: mammals/badger
red kangaroo: marsupials/kangaroo
wild turkey: birds/turkey
chicken: birds/hen, birds/rooster, birds/chicken_profile
peafowl: birds/peacock
mallard: birds/duck, birds/drake
"""


@functools.cache
def load_photographs(folder: Path) -> dict[str, tuple[Cutout, ...]]:
    """Return {common name of a kind: photographs of it} of the package's folder `stamps`.

    Raises:
        UserError: the folder is not there, or lacks a photograph that can be read.
    """
    photographs: dict[str, tuple[Cutout, ...]] = {}
    for line in _FILES.strip().splitlines():
        kind, _, files = line.partition(": ")
        photographs[kind] = tuple(_read(folder / "animals" / f"{file}.png", file) for file in files.split(", "))
    return photographs


def _read(path: Path, name: str) -> Cutout:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"photographs: {path} cannot be read ({error}); expected the folder 'stamps' of tuxpaint-stamps-default, "
            f"which is {INSTALLED} where the package is installed"
        ) from error
    # The margin is cropped because the size of an animal is set by the longest side of its image.
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    # Held in memory: speed counts, not size.
    image.save(buffer, "PNG", compress_level=1)
    opaque = sum(image.getchannel("A").histogram()[128:]) / (image.width * image.height)
    return Cutout(
        id=f"tuxpaint/{name}",
        name=name.rpartition("/")[2],
        concept="",
        thing="",
        family="",
        slice="unnamed",
        category="animals",
        subcategory="",
        source="photographs",
        style="photograph",
        width=image.width,
        height=image.height,
        covered=opaque,
        data=buffer.getvalue(),
    )


HABITATS = ("forest", "savanna", "steppe", "wetland", "mountain")
ACTIVITIES = ("day", "night", "twilight", "any")

# Common name; species and its NCBI id; habitats; activity; length in meters; largest group; emoji.
_SPECIES = """
rhesus macaque|Macaca mulatta|9544|forest mountain|day|0.6|3|monkey, monkey face
gorilla|Gorilla gorilla|9593|forest|day|1.6|2|gorilla
orangutan|Pongo pygmaeus|9600|forest wetland|day|1.3|1|orangutan
wolf|Canis lupus|9612|forest steppe mountain|night|1.3|3|wolf face
red fox|Vulpes vulpes|9627|forest steppe savanna|night|0.8|1|fox face
raccoon|Procyon lotor|9654|forest wetland|night|0.6|2|raccoon
lion|Panthera leo|9689|savanna steppe|night|2.1|2|lion face
tiger|Panthera tigris|9694|forest wetland|twilight|2.2|1|tiger, tiger face
leopard|Panthera pardus|9691|forest savanna mountain|night|1.6|1|leopard
cat|Felis catus|9685|steppe forest|any|0.5|1|cat, black cat, cat face
horse|Equus caballus|9796|steppe savanna|any|2.2|3|horse, horse face
donkey|Equus asinus|9793|steppe mountain|day|1.8|2|donkey
plains zebra|Equus quagga|89248|savanna|day|2.2|3|zebra face
moose|Alces alces|9852|forest wetland|twilight|2.6|1|moose
red deer|Cervus elaphus|9860|forest mountain steppe|twilight|2.0|3|deer
American bison|Bison bison|9901|steppe|any|2.9|3|bison
cattle|Bos taurus|9913|steppe savanna wetland|any|2.4|3|cow, ox, cow face
water buffalo|Bubalus bubalis|89462|wetland savanna|any|2.7|3|water buffalo
sheep|Ovis aries|9940|mountain steppe|day|1.2|3|sheep, ram
goat|Capra hircus|9925|mountain|day|1.2|3|goat
wild boar|Sus scrofa|9823|forest wetland|night|1.4|3|boar
dromedary|Camelus dromedarius|9838|steppe savanna|any|2.9|2|dromedary camel
Bactrian camel|Camelus bactrianus|9837|steppe mountain|day|2.9|2|bactrian camel
llama|Lama glama|9844|mountain|day|1.7|3|llama
giraffe|Giraffa camelopardalis|9894|savanna|twilight|4.0|2|giraffe face
African elephant|Loxodonta africana|9785|savanna forest|any|5.0|2|elephant
Indian rhinoceros|Rhinoceros unicornis|9809|savanna wetland|twilight|3.4|1|rhinoceros
hippopotamus|Hippopotamus amphibius|9833|wetland savanna|night|3.5|2|hippopotamus
house mouse|Mus musculus|10090|steppe forest savanna|night|0.09|1|mouse, mouse face
brown rat|Rattus norvegicus|10116|wetland forest|night|0.22|2|rat
European rabbit|Oryctolagus cuniculus|9986|steppe mountain savanna|twilight|0.4|3|rabbit, rabbit face
eastern chipmunk|Tamias striatus|45474|forest mountain|day|0.2|1|chipmunk
American beaver|Castor canadensis|51338|wetland|night|0.9|1|beaver
hedgehog|Erinaceus europaeus|9365|forest steppe|night|0.25|1|hedgehog
brown bear|Ursus arctos|9644|forest mountain|any|2.0|1|bear face
giant panda|Ailuropoda melanoleuca|9646|forest mountain|any|1.6|1|panda face
otter|Lutra lutra|9657|wetland|night|0.8|2|otter
badger|Meles meles|9662|forest steppe|night|0.8|2|badger
striped skunk|Mephitis mephitis|30548|forest steppe|night|0.5|1|skunk
red kangaroo|Osphranter rufus|9321|savanna steppe|twilight|1.5|3|kangaroo
wild turkey|Meleagris gallopavo|9103|forest steppe|day|1.1|3|turkey
chicken|Gallus gallus|9031|forest savanna|day|0.5|3|rooster, chicken
peafowl|Pavo cristatus|9049|forest savanna|day|1.2|2|peacock
mallard|Anas platyrhynchos|8839|wetland|day|0.55|3|duck
mute swan|Cygnus olor|8869|wetland|day|1.4|2|swan
greylag goose|Anser anser|8843|wetland steppe|day|0.8|3|goose
eagle owl|Bubo bubo|30461|mountain forest|night|0.65|1|owl
tortoise|Testudo hermanni|86976|steppe savanna mountain|day|0.25|1|turtle
"""
# Emoji that show a head alone, in both styles or in Twemoji only: they look into the camera from its lower edge.
_HEADS = frozenset({"raccoon", "moose", "chicken"})
_TWEMOJI_HEADS = frozenset({"gorilla", "orangutan", "deer", "boar", "rhinoceros"})


@dataclass(frozen=True)
class Kind:
    """A species of the survey.

    Args:
        taxon, taxon_id: scientific name and NCBI id.
        habitats: of HABITATS.
        activity: one of ACTIVITIES.
        length: of the body, in meters.
        max_group: individuals that come together.
        emoji: names of the emoji that show it.
    """

    name: str
    taxon: str
    taxon_id: str
    habitats: tuple[str, ...]
    activity: str
    length: float
    max_group: int
    emoji: tuple[str, ...]


def _read_kind(line: str) -> Kind:
    name, taxon, taxon_id, habitats, activity, length, max_group, emoji = line.split("|")
    return Kind(
        *(name, taxon, taxon_id, tuple(habitats.split()), activity, float(length), int(max_group)),
        emoji=tuple(emoji.split(", ")),
    )


KINDS: tuple[Kind, ...] = tuple(_read_kind(line) for line in _SPECIES.strip().splitlines())


@functools.cache
def load_taxa() -> Taxa:
    """Return the 48 species with their ancestors, from the shipped table."""
    taxa = load_builtin_taxa()
    needed = {index for kind in KINDS for index in taxa.lineage(taxa.index(kind.taxon_id))}
    return Taxa.from_rows(row for index, row in enumerate(taxa.to_rows()) if index in needed)


def shows_head(drawing: Cutout) -> bool:
    """Whether a drawing shows a head alone."""
    # "Giraffe face" is the name of an emoji with neck and body.
    if drawing.style == "photograph":
        return False
    face = drawing.name.endswith(" face") and drawing.name != "giraffe face"
    return face or drawing.name in _HEADS or (drawing.style == "twemoji" and drawing.name in _TWEMOJI_HEADS)


@functools.cache
def load_drawings(photographs: str = "") -> dict[str, tuple[Cutout, ...]]:
    """Return {taxon id: drawings of it}, at least two; the first is held out for test cameras.

    Args:
        photographs: folder of tuxpaint-stamps-default, whose photographs follow the emoji; "" for none.
    """
    further = load_photographs(Path(photographs)) if photographs else {}
    by_name: dict[str, list[Cutout]] = {}
    for cutout in load_cutouts():
        if cutout.source == "emoji":
            by_name.setdefault(cutout.name, []).append(cutout)
    drawings = {}
    for kind in KINDS:
        cutouts = [cutout for name in kind.emoji for cutout in by_name[name]]
        # By its name, not by the seed: models that saw different worlds share what none of them saw.
        ordered = sorted(cutouts, key=lambda cutout: uniform("trap drawing", cutout.id))
        drawings[kind.taxon_id] = (*ordered, *further.get(kind.name, ()))
    return drawings

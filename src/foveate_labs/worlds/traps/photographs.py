"""Photographs of animals without their background, from the Debian package tuxpaint-stamps-default (GPL-2).

They are read where a user installed or unpacked the package, and are not shipped. (Of gcompris-qt-data, 25.0.12, the
photographs have a background and the images without one are cartoons: neither is used.)
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from foveate.core.errors import UserError
from foveate_labs.worlds.builtin.cutouts import Cutout

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

"""Generate noisy alt-texts, modeled on the real titles of Open Clip Art.

Measured on the 6,841 public-domain images of Debian's openclipart 0.18:
  58 % carry a title that names a batch ("gramastar", "Part of the Flat Icon Collection ...", "Various Cliparts").
Of the 2,880 whose title is their own:
  41 % are one word; 32 % have no capital letter; 21 % are file names or numbered ("arrow-right-purple", "horse#1",
  "48_ports_switch"); 14 % are Italian or French; 3 % name the author ("Clipart by Nicu Buculei - bee");
  a few are wrong (an apple titled "... - pear"); all have keywords, 3.8 on average, often a folder ("food") or a
  leak of the tool that wrote them ("hash", in 7 %); 37 % have a description, in 6 % of titles an address or a hash.

Scenes use these rates with two exceptions: batch titles are rarer (8 %), since a few thousand scenes would teach little
otherwise, and half of the plain titles name more than one thing, since a scene has more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.records.builtin.phrases import head_noun
from foveate_labs.worlds.scenes.language import Thing

RATES = {
    "partial": 0.28,  # one thing, mostly the largest; sometimes a single word of its name
    "list": 0.20,  # most things, in any order
    "keywords": 0.15,
    "file name": 0.15,
    "other language": 0.10,
    "batch": 0.08,
    "credit": 0.03,
    "wrong": 0.01,
}
_CREATORS = ("Anna B.", "j.miller", "Tomas K", "studio_nine", "M. Rossi", "pixelfarm", "Lena", "open desk")
_BATCHES = (
    "Various Cliparts",
    "scene collection",
    "Part of the Scene Collection (Wed Aug 25 23:29:46 2004)",
    "untitled",
    "new drawing",
    "my pictures",
    "card",
)
_FOLDER_WORDS = ("hash", "unsorted", "clipart", "color", "image", "cartoon", "symbol", "misc")
_WRONG = ("pear", "logo", "portrait", "map of Europe", "old house", "flag", "blue button", "sunset", "lamp")
_FRAMES = (
    "disegno di {}",
    "{} con altre cose",
    "dessin {}",
    "image de {}",
    "dibujo de {}",
    "{} y otras cosas",
    "Bild mit {}",
)
# Italian, French, Spanish, German for words that many names end in.
_TRANSLATED = {
    "apple": "mela pomme manzana Apfel",
    "ball": "palla ballon pelota Ball",
    "bird": "uccello oiseau pájaro Vogel",
    "boat": "barca bateau barco Boot",
    "book": "libro livre libro Buch",
    "bottle": "bottiglia bouteille botella Flasche",
    "bus": "autobus autobus autobús Bus",
    "cake": "torta gâteau pastel Kuchen",
    "car": "macchina voiture coche Auto",
    "cat": "gatto chat gato Katze",
    "chair": "sedia chaise silla Stuhl",
    "clock": "orologio horloge reloj Uhr",
    "cup": "tazza tasse taza Tasse",
    "dog": "cane chien perro Hund",
    "egg": "uovo oeuf huevo Ei",
    "eye": "occhio oeil ojo Auge",
    "face": "faccia visage cara Gesicht",
    "fish": "pesce poisson pez Fisch",
    "flower": "fiore fleur flor Blume",
    "glass": "bicchiere verre vaso Glas",
    "guitar": "chitarra guitare guitarra Gitarre",
    "hammer": "martello marteau martillo Hammer",
    "hand": "mano main mano Hand",
    "hat": "cappello chapeau sombrero Hut",
    "heart": "cuore coeur corazón Herz",
    "horse": "cavallo cheval caballo Pferd",
    "house": "casa maison casa Haus",
    "key": "chiave clé llave Schlüssel",
    "knife": "coltello couteau cuchillo Messer",
    "leaf": "foglia feuille hoja Blatt",
    "man": "uomo homme hombre Mann",
    "monkey": "scimmia singe mono Affe",
    "moon": "luna lune luna Mond",
    "mountain": "montagna montagne montaña Berg",
    "mouse": "topo souris ratón Maus",
    "pen": "penna stylo pluma Stift",
    "pig": "maiale cochon cerdo Schwein",
    "rabbit": "coniglio lapin conejo Hase",
    "ring": "anello bague anillo Ring",
    "shoe": "scarpa chaussure zapato Schuh",
    "star": "stella étoile estrella Stern",
    "sun": "sole soleil sol Sonne",
    "train": "treno train tren Zug",
    "tree": "albero arbre árbol Baum",
    "umbrella": "ombrello parapluie paraguas Schirm",
    "woman": "donna femme mujer Frau",
}


@dataclass(frozen=True)
class AltText:
    """A text and the kind of noise it has, a key of RATES."""

    text: str
    kind: str


def draw_alt_text(rng: np.random.Generator, things: Sequence[Thing], ground: str) -> AltText:
    """Draw a noisy text about `things` (at least one), with the kinds and rates of RATES."""
    kind = list(RATES)[rng.choice(len(RATES), p=list(RATES.values()))]
    # With noise on the sizes: people mostly name the largest thing, not always.
    ordered = sorted(things, key=lambda thing: -thing.size * rng.uniform(0.5, 1.5))
    main = ordered[0].phrase
    phrases = [thing.phrase for thing in ordered]
    text = _WRITERS[kind](rng, main, phrases, ground)
    # The other kinds have a case of their own, such as IMG_0042.
    return AltText(_vary_case(rng, text) if kind in ("partial", "list", "wrong") else text, kind)


def _choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _vary_case(rng: np.random.Generator, text: str) -> str:
    style = rng.random()
    # A third stays without a capital letter, as 32 % of the real titles.
    return text if style < 0.33 else text.title() if style < 0.6 else text[:1].upper() + text[1:]


def _partial(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    text = head_noun(main) if rng.random() < 0.2 else main
    return f"{text} on {ground}" if rng.random() < 0.1 else text


def _list(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    listed = list(phrases) if rng.random() < 0.6 else list(phrases[: max(1, len(phrases) - 1)])
    joint = (", ", " and ", " & ", " - ")[rng.choice(4, p=(0.5, 0.35, 0.08, 0.07))]
    return joint.join(listed)


def _keywords(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    keywords = [head_noun(phrase) if rng.random() < 0.4 else phrase for phrase in phrases[: int(rng.integers(1, 4))]]
    keywords += [_choose(rng, _FOLDER_WORDS) for _ in range(rng.integers(1, 3))]
    return ", ".join(keywords[index] for index in rng.permutation(len(keywords)))


def _file_name(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    number = int(rng.integers(1, 1000))
    if rng.random() < 0.3:
        return f"{_choose(rng, ('img', 'IMG', 'scan', 'picture', 'DSC'))}_{number:04d}.{_choose(rng, ('png', 'jpg'))}"
    joined = _choose(rng, ("_", "-")).join(main.replace("'", "").replace(":", "").replace(",", "").split())
    return joined + _choose(rng, ("", f"_{number % 10:02d}", f"#{number}", ".png", f"{number % 5}", "_bw"))


def _other_language(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    for phrase in phrases:
        if head_noun(phrase) in _TRANSLATED:
            return _choose(rng, _TRANSLATED[head_noun(phrase)].split())
    # For names without a translation: words of another language around the English name.
    return _choose(rng, _FRAMES).format(main)


def _batch(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return _choose(rng, _BATCHES)


def _credit(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return f"Clipart by {_choose(rng, _CREATORS)} - {main}"


def _wrong(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return _choose(rng, _WRONG)


_WRITERS = {
    "partial": _partial,
    "list": _list,
    "keywords": _keywords,
    "file name": _file_name,
    "other language": _other_language,
    "batch": _batch,
    "credit": _credit,
    "wrong": _wrong,
}

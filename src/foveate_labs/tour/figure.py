"""Compose the README image: held-out images of a tour with phrases and the boxes that were predicted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.core.results import LocatedPhrase, parse_result
from foveate.report import words
from foveate.report.images import open_image, resolve_inside
from foveate.report.parts import RIGHT_FROM
from foveate.report.render import read_result
from foveate_labs.studies.results import TourResult

WIDTH = 1600
MARGIN = 56
GAP = 32
RADIUS = 22
# Colors of the page's light theme (templates/page.css), so that image and report look alike.
GROUND = (251, 250, 248)
CARD = (255, 255, 255)
LINE = (228, 225, 220)
INK = (27, 28, 31)
SOFT = (92, 94, 102)
ACCENT = (194, 65, 12)
BOX = (255, 106, 31)
TEXT_HEIGHT = 104
FORMATS = {".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the composition."""

    answer: LocatedPhrase
    box: tuple[float, float, float, float]


def choose_tiles(answers: Sequence[LocatedPhrase], *, default: str, max_tiles: int = 6) -> list[Tile]:
    """Choose answers on different images: slices in turn, right ones and new phrases first.

    These are the best ones; the footnote of the image counts all of them.
    """
    tiles: list[Tile] = []
    pools: dict[str, list[LocatedPhrase]] = {}
    for answer in answers:
        if (answer.default or default) in answer.boxes:
            pools.setdefault(answer.slice, []).append(answer)
    for pool in pools.values():
        # The best of each slice come first; slices then take turns, so that unseen phrases appear, too.
        pool.sort(key=lambda a: -(_overlap(a, default) or 0.0))
    while len(tiles) < max_tiles and any(pools.values()):
        for pool in pools.values():
            used_images = {tile.answer.image for tile in tiles}
            used_phrases = {tile.answer.phrase.casefold() for tile in tiles}
            free = [a for a in pool if a.image not in used_images]
            # In place: an image that another slice has used is gone for this one, too.
            pool[:] = free
            if free and len(tiles) < max_tiles:
                answer = min(free, key=lambda a: (_missed(a, default), a.phrase.casefold() in used_phrases))
                pool.remove(answer)
                rule = answer.default or default
                tiles.append(Tile(answer, answer.boxes[rule]))
    return tiles


def _overlap(answer: LocatedPhrase, default: str) -> float | None:
    return answer.iou.get(answer.default or default)


def _missed(answer: LocatedPhrase, default: str) -> bool:
    overlap = _overlap(answer, default)
    return overlap is not None and overlap < RIGHT_FROM


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType has no scalable font"
    return font


def fit_text(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, *, width: int) -> str:
    """Shorten a text with an ellipsis until it is at most `width` pixels wide."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    # One letter at a time: widths of letters differ, and a phrase is short.
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _square(image: Image.Image, side: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Letterbox into a square; return it with left, top, width and height of the image in it."""
    scale = side / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    square = Image.new("RGB", (side, side), (241, 239, 235))
    left, top = (side - width) // 2, (side - height) // 2
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return square, (left, top, width, height)


def _draw_box(draw: ImageDraw.ImageDraw, box: tuple[float, ...], area: tuple[float, ...], *, line: int) -> None:
    left, top, width, height = area
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in box)
    edges = (left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height)
    # A dark halo under the colored line: visible on any image.
    halo = max(1, line // 3)
    outer = (edges[0] - halo, edges[1] - halo, edges[2] + halo, edges[3] + halo)
    draw.rounded_rectangle(outer, radius=line * 2, outline=(52, 40, 34), width=line + 2 * halo)
    draw.rounded_rectangle(edges, radius=line * 2, outline=BOX, width=line)


def _card(tile: Tile, image: Path, *, side: int, scale: int, overlap: float | None) -> Image.Image:
    """Draw a card at `scale` times its final size; shrinking it smooths text and corners."""
    pad, big = 12 * scale, side * scale
    inner = big - 2 * pad
    card = Image.new("RGB", (big, big + TEXT_HEIGHT * scale), GROUND)
    draw = ImageDraw.Draw(card)
    edge = (0, 0, card.width - 1, card.height - 1)
    draw.rounded_rectangle(edge, radius=RADIUS * scale, fill=CARD, outline=LINE, width=scale)
    square, area = _square(open_image(image, longest_side=2 * side), inner)
    _draw_box(ImageDraw.Draw(square), tile.box, area, line=4 * scale)
    mask = Image.new("L", (inner, inner), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, inner - 1, inner - 1), radius=14 * scale, fill=255)
    card.paste(square, (pad, pad), mask)
    phrase, small = _font(30 * scale), _font(21 * scale)
    x, y = pad + 8 * scale, big + 2 * scale
    room = inner - 16 * scale
    draw.text((x, y), fit_text(draw, tile.answer.phrase, phrase, width=room), font=phrase, fill=INK)
    below = words.concept_name(tile.answer.slice) if tile.answer.slice else ""
    if overlap is not None:
        below = f"{below}, overlap {overlap:.0%}".lstrip(", ")
    draw.text((x, y + 44 * scale), fit_text(draw, below, small, width=room), font=small, fill=SOFT)
    return card


def compose(run_folder: Path, tour: TourResult) -> Image.Image:
    """Compose an RGB image, 1600 pixels wide.

    Raises:
        UserError: the tour has fewer than two 'where is' answers.
    """
    tiles = choose_tiles(tour.locate, default=tour.default)
    if len(tiles) < 2:
        raise UserError("result.json, field 'locate': a README image needs answers on at least two images")
    columns = 3 if len(tiles) in (3, 5, 6) else 2 if len(tiles) == 2 else 4
    # Full rows only: a gap at the end looks like a missing image.
    tiles = tiles[: len(tiles) - len(tiles) % columns]
    rows = len(tiles) // columns
    side = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    head, foot = 150, 84
    row_height = side + TEXT_HEIGHT
    height = MARGIN + head + rows * row_height + (rows - 1) * GAP + foot
    canvas = Image.new("RGB", (WIDTH, height), GROUND)
    draw = ImageDraw.Draw(canvas)
    title, rest = "Ask an image ", "where"
    big = _font(68)
    draw.text((MARGIN, MARGIN - 6), title, font=big, fill=INK)
    draw.text((MARGIN + draw.textlength(title, font=big), MARGIN - 6), rest, font=big, fill=ACCENT)
    draw.text((MARGIN, MARGIN + 82), "A phrase goes in, a box comes out.", font=_font(30), fill=SOFT)
    for number, tile in enumerate(tiles):
        image = resolve_inside(run_folder, tile.answer.image)
        card = _card(tile, image, side=side, scale=2, overlap=_overlap(tile.answer, tour.default))
        card = card.resize((side, row_height), Image.Resampling.LANCZOS)
        x = MARGIN + (number % columns) * (side + GAP)
        y = MARGIN + head + (number // columns) * (row_height + GAP)
        canvas.paste(card, (x, y))
    draw.text((MARGIN, height - 60), _footnote(tour), font=_font(22), fill=SOFT)
    return canvas


def _footnote(tour: TourResult) -> str:
    overlaps = [value for a in tour.locate if (value := _overlap(a, tour.default)) is not None]
    num_found = sum(overlap >= RIGHT_FROM for overlap in overlaps)
    # The image shows only the best answers, so the footnote must count all of them.
    text = "Held-out images, boxes as the model gave them."
    if overlaps:
        counts = f"{len(overlaps)} examples {num_found} are found (overlap of half or more)"
        text += f" Of the tour's {counts}; the best are shown."
    return text


def readme_image(run_folder: Path, path: Path) -> Path:
    """Write the README image of a tour's run folder as .png or .webp; return its path.

    Raises:
        UserError: another suffix, a run that is no tour, or missing images.
    """
    run_folder, path = Path(run_folder), Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path.name}: unknown image format (got {path.suffix!r}); expected .png or .webp")
    result = read_result(run_folder)
    if result["kind"] != "tour":
        kind = result["kind"]
        raise UserError(f"{run_folder}: wrong kind of run (got '{kind}'); a README image needs a tour")
    image = compose(run_folder, parse_result(TourResult, result))
    buffer = io.BytesIO()
    if FORMATS[path.suffix.lower()] == "PNG":
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="WEBP", quality=88, method=6)
    write_bytes_atomically(path, buffer.getvalue())
    return path

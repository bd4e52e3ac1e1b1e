"""`foveate locate`: where is this phrase in this image?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, run_option

if TYPE_CHECKING:
    from foveate.pretrain.locate import PhraseBoxes


@click.command("locate", cls=FieldsCommand, short_help="Find a phrase in an image.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("phrase")
@fields("foveate.pretrain.searching.settings:LocateSettings", "rule")
@run_option("runs/locate", "Folder for the page")
@common()
def command(
    model: Path,
    image: Path,
    phrase: str,
    settings: dict[str, Any],
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Print the box of PHRASE in IMAGE, in pixels and as fractions, by every rule, and write a page with it.

    `head` is the box of the grounding head; `candidates` the best of several hundred boxes that the Prompter embeds
    after one pass over the image. A center box and a random box are baselines: a box that does not beat them is no
    answer.

    \b
    Example:
      foveate locate runs/tour/cloc/model holiday.jpg "a red boat"
    """
    from foveate.core.runs import RunFolder
    from foveate.pretrain.locate import locate, read_image
    from foveate.pretrain.results import LocateResult
    from foveate.records.images import save_thumbnail
    from foveate.report import render
    from foveate.vision.localizer.folder import load_model

    data = read_image(image)
    located = locate(load_model(model, device=device), data, phrase, seed=seed or 0, **settings)
    # Created only now: a mistake in the phrase or the image leaves no folder.
    folder = RunFolder.create(run or Path("runs/locate"))
    save_thumbnail(data, folder.path / "images" / "image.webp")
    result = LocateResult.model_validate(
        {
            "model": str(model),
            "file": str(image),
            "image": "images/image.webp",
            "phrase": phrase,
            "default": located.rule,
            "boxes": located.boxes,
            "scores": located.scores,
            "width": located.width,
            "height": located.height,
        }
    ).to_json()
    folder.write_result(result)
    lines = [_line(name, located) for name in located.boxes]
    finish(result, lines, {"report": render(folder.path)}, as_json=as_json)


def _line(name: str, located: PhraseBoxes) -> str:
    """Format one rule's box in fractions and in pixels, and its cosine with the phrase."""
    box, score = located.boxes[name], located.scores[name]
    fractions = "  ".join(f"{edge} {value:.3f}" for edge, value in zip(("x1", "y1", "x2", "y2"), box, strict=True))
    sides = (located.width, located.height) * 2
    pixels = " ".join(f"{value * side:.0f}" for value, side in zip(box, sides, strict=True))
    cosine = "no area" if score is None else f"cosine {score:+.3f}"
    return f"{name:<10}  {fractions}  px {pixels}  {cosine}{'  <- selected' if name == located.rule else ''}"

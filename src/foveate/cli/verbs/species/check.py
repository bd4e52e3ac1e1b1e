"""`foveate species check`: list what is doubtful in a survey, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option
from foveate.cli.verbs.species.options import SETTINGS


@click.command("check", cls=FieldsCommand, short_help="List what is doubtful in a survey, before any training.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(f"{SETTINGS}:CheckSettings", "only", "max_listed", repeat=("only",), metavars={"only": "CHECK"})
@path_option("--model", "Model folder: also ranks hours, and places that it knows, by what the images show.")
@common(seed=False)
def command(collection: Path, settings: dict[str, Any], model: Path | None, as_json: bool, device: str | None) -> None:
    """List what is doubtful in the survey COLLECTION: clocks, deployments, places, names, copied files, bursts.

    Each finding says what it means and how to repair it. Nothing is changed: images with a doubtful clock have no hour,
    and the table of deployments is yours to correct.

    \b
    Example:
      foveate species check survey
      foveate species check survey --only "set back" --json
      foveate species check survey --model runs/species/model
    """
    from foveate.core.recipes import validate
    from foveate.species.settings import CheckSettings
    from foveate.survey.checks import check_survey
    from foveate.survey.survey import Survey

    checked = validate(CheckSettings, settings, where="foveate species check")
    result = check_survey(Survey.open(collection), only=checked.only)
    content, lines = result.as_dict(), result.lines(max_per_code=checked.max_listed)
    if model is not None:
        from foveate.species.explain import hint_survey
        from foveate.species.folder import open_species

        clocks, locations = hint_survey(open_species(model), collection, device=device)
        content |= {"clocks": [hint.to_json() for hint in clocks], "places": [hint.to_json() for hint in locations]}
        lines += ["", "hints of the model, the most doubtful first; 0.5 is chance, nothing was changed"]
        for clock in clocks[: checked.max_listed]:
            shift = f", best with the clock at {clock.shift_hours:+d} h ({clock.shifted_rank:.2f})"
            lines.append(f"  hours of {clock.deployment}: rank {clock.rank:.2f}{shift if clock.shift_hours else ''}")
        for hint in locations[: checked.max_listed]:
            other = f", likelier {hint.likelier} on {hint.share:.0%} of the images" if hint.likelier else ""
            lines.append(f"  place of {hint.deployment}: rank {hint.rank:.2f}{other}")
    finish(content, lines, {"collection": collection}, as_json=as_json)

"""`foveate species build`: build the graph of a survey as readable triples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish
from foveate.cli.verbs.species.options import MAX_LISTED, SETTINGS, list_labels


@click.command("build", cls=FieldsCommand, short_help="Build the graph of a survey as readable triples.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder of the graph.")
@fields(f"{SETTINGS}:BuildSettings", "taxonomy", "labels", "min_probability", metavars={"taxonomy": "FILE"})
@common(device=False, seed=False)
def command(collection: Path, to: Path, settings: dict[str, Any], as_json: bool) -> None:
    """Build the graph of the survey COLLECTION: which species, parents, places and hours its images are linked to.

    The folder has triples.csv, which you may read and edit, and matches.csv: how each label was matched to the
    taxonomy. It holds coordinates of cameras; publish it only after you rounded them. A second call replaces it.

    \b
    Example:
      foveate species build survey --to graph
      foveate species build survey --taxonomy taxa.csv --to graph
    """
    from foveate.core.recipes import validate
    from foveate.species.graph import MATCHES, TRIPLES, build_graph
    from foveate.species.settings import BuildSettings

    checked = validate(BuildSettings, settings, where="foveate species build")
    graph = build_graph(
        collection, to, taxonomy=checked.taxonomy, source=checked.labels, min_probability=checked.min_probability
    )
    counts, doubtful = graph.describe(), [str(match) for match in graph.matching.doubtful]
    lines = [", ".join(f"{name} {number:,}" for name, number in counts.items())]
    lines += [f"left out: {reason}: {number:,} images" for reason, number in graph.left_out.items()]
    untrained = graph.untrained_classes()
    if untrained:
        lines.append(f"{len(untrained)} classes have no image in the split train: {list_labels(untrained)}")
    lines += [f"label {text}" for text in doubtful[:MAX_LISTED]]
    if len(doubtful) > MAX_LISTED:
        lines.append(f"{len(doubtful) - MAX_LISTED} more labels to look at are in {to / MATCHES}")
    result = {"counts": counts, "left_out": dict(graph.left_out), "matches": graph.matching.counts}
    finish(
        {**result, "untrained": untrained, "doubtful": doubtful},
        lines,
        {"triples": to / TRIPLES, "matches": to / MATCHES},
        as_json=as_json,
    )

"""`foveate search`: images and regions of an index, by a text, an image, a box in an image."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import NOT_FOUND, Call, common, path_option, run_option

if TYPE_CHECKING:
    from foveate.records.boxes import Box, PixelBox
    from foveate.search.query import Query
    from foveate.search.search import Hit, Index, Verdict
    from foveate.search.settings import SearchSettings
    from foveate.vision.localizer.model import LocalizingModel


@click.command("search", cls=FieldsCommand, short_help="Find images and regions in an index.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@fields(
    "foveate.search.settings:SearchSettings",
    "image",
    "box",
    "pixels",
    "negative",
    ("weights", "--weight"),
    "count",
    "kind",
    "per_image",
    "text_weight",
    "backend",
    repeat=("weights",),
    metavars={"box": "X1,Y1,X2,Y2", "weights": "PART=NUMBER"},
)
@path_option("--model", "Path of the model; by default the path stored in the index.")
@path_option("--collection", "Path of the collection; by default the path stored in the index.")
@click.option("--interactive", is_flag=True, help="Keep the model and answer one text a line from standard input.")
@run_option("runs/search/WORDS-OF-THE-QUERY", "Folder for the page")
@common(seed=False)
def command(
    call: Call,
    index: Path,
    text: str | None,
    settings: dict[str, Any],
    model: Path | None,
    collection: Path | None,
    interactive: bool,
) -> None:
    """Find what in INDEX is nearest to TEXT, an image, a box in an image, or their sum; print and show it.

    Scores of images and regions are calibrated against random queries, and the words of TEXT are also looked for in
    captions and file names. Each query has a page of its own. Exit status 3 where TEXT is not found: the nearest are
    printed all the same.

    \b
    Example:
      foveate search my-index "a red boat"
      foveate search my-index --interactive
      foveate search OWNER/NAME "a red boat" --collection my-images
      foveate search my-index --image holiday.jpg --box 0.1,0.2,0.5,0.6 --negative "a person"
    """
    from foveate.core.hub import find
    from foveate.search.index_folder import Description
    from foveate.search.settings import SearchSettings

    resolved = call.check(SearchSettings, settings)
    if interactive and (resolved.image or resolved.box or call.run):
        raise click.UsageError("--interactive reads texts: --image, --box and --out have no effect")
    index = find("index", index).folder
    Description.read(index)
    # Torch is loaded from here on: a mistake in a path or a name must not wait for it.
    from foveate.search.locate import read_image
    from foveate.search.query import Query

    query = None
    if text is not None or not interactive:
        query = Query(
            text=text,
            image=None if resolved.image is None else read_image(resolved.image),
            box=_box(resolved),
            negative=resolved.negative,
            weights=resolved.weights,
        )
    # The query is checked by now: a mistake in it must not wait for the model to load.
    from foveate.search.search import Index

    opened = Index.open(index, collection=collection)
    encoder = opened.open_model(model, device=call.device)
    if interactive:
        _answer_lines(call, opened, encoder, resolved, text)
        return
    assert query is not None
    _answer(call, opened, encoder, query, resolved)


def _answer(call: Call, index: Index, encoder: LocalizingModel, query: Query, settings: SearchSettings) -> None:
    """Search once, write the page, and print the hits."""
    from foveate.core.runs import RunFolder, make_free_folder
    from foveate.report.render import render_and_tell
    from foveate.search.search import search
    from foveate.search.search_result import write_search

    hits, query_box = search(index, query, encoder, **_hit_options(settings))
    # Created only now: a query that finds nothing leaves no folder.
    path = call.run or make_free_folder(Path("runs/search"), query.text or (settings.image or Path("image")).stem)
    folder = RunFolder.create(path, command=call.command)
    verdict = _judge(index, query, hits, encoder, settings)
    result = write_search(
        folder,
        index,
        query,
        hits,
        box=query_box,
        query_file=settings.image,
        backend=settings.backend,
        verdict=verdict,
        command=call.command,
    )
    report, lines = render_and_tell(folder.path)
    call.finish(result.to_json(), lines, {"report": report})
    if not verdict.has_match:
        sys.exit(NOT_FOUND)


def _answer_lines(
    call: Call, index: Index, encoder: LocalizingModel, settings: SearchSettings, text: str | None
) -> None:
    """Answer one text after the other from standard input, with the model and the index kept in memory."""
    from foveate.core.errors import UserError
    from foveate.report.pages.pretrain import hit_line
    from foveate.search.query import Query
    from foveate.search.search import search
    from foveate.search.search_result import make_hit

    terminal = sys.stdin.isatty()
    texts = itertools.chain([] if text is None else [text], sys.stdin)
    if terminal:
        click.echo(f"{len(index):,} vectors. One query a line; an empty line or Ctrl-D ends.", err=True)
    for line in texts:
        query_text = line.strip()
        if not query_text:
            # At a terminal, an empty line ends the session; in piped input it is skipped.
            if terminal:
                return
            continue
        try:
            query = Query(text=query_text, negative=settings.negative, weights=settings.weights)
            start = time.perf_counter()
            hits, _ = search(index, query, encoder, **_hit_options(settings))
            verdict = _judge(index, query, hits, encoder, settings)
        except UserError as problem:
            # One bad query must not cost the loaded model.
            click.echo(f"error: {problem}", err=True)
            continue
        seconds = time.perf_counter() - start
        if call.as_json:
            click.echo(
                json.dumps(
                    {
                        "query": query_text,
                        "seconds": round(seconds, 4),
                        "hits": [_to_json(h) for h in hits],
                        **dataclasses.asdict(verdict),
                    }
                )
            )
            continue
        for line in _describe_verdict(verdict):
            click.echo(line)
        for rank, hit in enumerate(hits, start=1):
            click.echo(hit_line(rank, make_hit(hit)))
        click.echo(f"{query_text}: {len(hits)} hits in {1000 * seconds:.0f} ms")


def _judge(
    index: Index, query: Query, hits: Sequence[Hit], encoder: LocalizingModel, settings: SearchSettings
) -> Verdict:
    return index.judge(query, hits, encoder, kind=settings.kind, text_weight=settings.text_weight)


def _describe_verdict(verdict: Verdict) -> list[str]:
    """Say that nothing was found, and name the words that the text tower does not know."""
    lines = [] if verdict.has_match else [f"not found: {verdict.reason}; the nearest:"]
    names = ", ".join(repr(word[:40]) for word in verdict.unknown_words)
    return [*lines, *([f"unknown to the text tower: {names}"] if names else [])]


def _hit_options(settings: SearchSettings) -> dict[str, Any]:
    from foveate.search.settings import HitSettings

    return settings.model_dump(include=set(HitSettings.model_fields))


def _to_json(hit: Hit) -> dict[str, Any]:
    content = dataclasses.asdict(hit)
    return content | {"box": None if hit.box is None else hit.box.to_array().tolist()}


def _box(settings: SearchSettings) -> Box | PixelBox | None:
    """Return the box of the query as a type that knows its units."""
    from foveate.records.boxes import Box, PixelBox

    if settings.box is None:
        return None
    return PixelBox(*settings.box) if settings.pixels else Box(*settings.box)

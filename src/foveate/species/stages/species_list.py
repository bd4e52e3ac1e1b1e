"""Restrict decisions to a person's list of species; it overrides every geographic stage.

`mask` takes the probability of unlisted animals away. `restrict`, MegaDetector's rule, gives it to the nearest taxon
above them that has a listed taxon below it; with `walk_down` it goes on to that taxon where it is the only one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings
from foveate.core.text_tables import read_text
from foveate.species.rows import Floats, Integers, Rows, Stage, merge_columns
from foveate.species.stages import StageKind, warn_idle
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa, normalize_name

_COLUMNS = ("latin", "scientificname", "scientific_name", "taxon", "species", "name")
# A sum of masked float32 probabilities this small is rounding, and dividing by it would make an answer out of noise.
_NOTHING_LEFT = 1e-12
ANIMAL = "animal"
"""Label of an animal of which nothing more is known."""


class ListSettings(Settings):
    """Options of the species list."""

    file: Path | None = Field(
        None,
        description="species that occur: a name per line, or a CSV with a column latin; a genus admits its species",
    )
    mode: Literal["mask", "restrict"] = Field(
        "mask", description="remove unlisted animals, or move them to the nearest taxon with listed descendants"
    )
    walk_down: bool = Field(False, description="with restrict: go down to the only listed taxon of that taxon")


def renormalize(weights_RK: Floats) -> Floats:
    """Divide rows by their sums, in place; a row with nothing left becomes NaN."""
    sums_R1 = weights_RK.sum(axis=1, keepdims=True)
    sums_R1[sums_R1 <= _NOTHING_LEFT] = np.nan
    weights_RK /= sums_R1
    return weights_RK


def read_list(path: Path) -> list[str]:
    """Read the names of a species list: a CSV with a column of scientific names, or a name per line.

    Empty lines and what follows a # are left out.

    Raises:
        UserError: the file is missing, no text, or has no name.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a species list")
    lines = [line.partition("#")[0] for line in read_text(path).splitlines()]
    first = next((line.lower() for line in lines if line.strip()), "")
    # Commas where no other delimiter separates a column of names: a plain list has no header, and a label of SpeciesNet
    # is one name with semicolons in it.
    delimiter = next((sign for sign in ",;\t|" if any(cell.strip(' "') in _COLUMNS for cell in first.split(sign))), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    rows = [row for row in rows if any(row)]
    column = 0
    if rows:
        header = [cell.lower() for cell in rows[0]]
        # Searched in the order of _COLUMNS, because MegaDetector lists have English names in a second column, `common`.
        column = next((header.index(name) for name in _COLUMNS if name in header), -1)
        rows = rows[1:] if column >= 0 else rows
        column = max(column, 0)
    names = [row[column] for row in rows if column < len(row) and row[column]]
    if not names:
        raise UserError(f"{path}: the species list is empty; expected a name per line, or a CSV with a column latin")
    return list(dict.fromkeys(names))


def match_classes(names: Iterable[str], classes: Classes, taxa: Taxa, *, where: str) -> NDArray[np.bool_]:
    """Return which classes [K] a list admits: those that it names, and all descendants of the taxa that it names.

    Raises:
        UserError: names that match no class, all of them.
    """
    # Compare by the tree, not by ranks: a listed family admits a species whose genus is missing from the taxonomy.
    lineages = [set(taxa.lineage(int(taxon))) for taxon in classes.taxa_K]
    labels = {normalize_name(label): k for k, label in enumerate(classes.labels)}
    allowed_K = np.zeros(len(classes), dtype=bool)
    unmatched = []
    for name in names:
        column = labels.get(normalize_name(name), -1)
        matches = {column} if column >= 0 else set()
        # A label may name a higher taxon, which admits its descendants like the scientific name of that taxon.
        of_label = [int(classes.taxa_K[column])] if column >= 0 else []
        for taxon in [*_match_taxa(name, taxa), *of_label]:
            matches |= {k for k, lineage in enumerate(lineages) if taxon in lineage}
        allowed_K[list(matches)] = True
        if not matches:
            unmatched.append(name)
    if unmatched:
        choices = [*classes.labels, *(taxa.names[i] for i in set().union(*lineages))]
        raise UserError(f"{where}: no class of the model matches {_describe_unmatched(unmatched, choices)}")
    return allowed_K


def restrict_classes(names: Iterable[str], classes: Classes, taxa: Taxa, *, walk_down: bool, where: str) -> Integers:
    """Return the taxon [K] that each class becomes under MegaDetector's restriction; -1: an animal, no more.

    Classes that are no animals, or have no taxon, keep what they have. Kingdoms and phyla are no targets: an animal
    of another class than all listed ones is only an animal.

    Raises:
        UserError: names that match no taxon, or several, all of them.

    Source: megadetector-utils 10.0.28 (MIT), classification_postprocessing.restrict_to_taxa_list.
    """
    listed: set[int] = set()
    unmatched = []
    for name in names:
        # Exactly one match: restricting to the wrong homonym would move animals to another branch of the tree.
        matches = _match_taxa(name, taxa)
        listed.update(matches)
        if len(matches) != 1:
            unmatched.append(name)
    if unmatched:
        raise UserError(f"{where}: not one taxon for {_describe_unmatched(unmatched, taxa.names)}")
    open_taxa = {i for taxon in listed for i in _below_phylum(taxon, taxa)}
    children: dict[int, list[int]] = {}
    for i in open_taxa:
        children.setdefault(int(taxa.parents[i]), []).append(i)
    targets_K = classes.taxa_K.copy()
    for k in np.flatnonzero(classes.animals_K & (classes.taxa_K >= 0)):
        # A lineage runs upward, so the first open taxon is the nearest.
        target = next((i for i in _below_phylum(int(classes.taxa_K[k]), taxa) if i in open_taxa), -1)
        while walk_down and target >= 0 and len(children.get(target, ())) == 1:
            target = children[target][0]
        targets_K[k] = target
    return targets_K


def _below_phylum(taxon: int, taxa: Taxa) -> list[int]:
    """Return a lineage from a taxon up to, and without, its phylum or kingdom."""
    lineage = taxa.lineage(taxon)
    end = next((n for n, i in enumerate(lineage) if taxa.ranks[i] in ("phylum", "kingdom")), len(lineage))
    return lineage[:end]


def _match_taxa(name: str, taxa: Taxa) -> list[int]:
    """List the taxa of a scientific name, else of a common one."""
    # Scientific names take precedence: an English name may also be a genus ("puma").
    matches = taxa.matches(name)
    return matches or [
        i for i, common in enumerate(taxa.common) if common and normalize_name(common) == normalize_name(name)
    ]


def _describe_unmatched(names: list[str], choices: Iterable[str]) -> str:
    options = [choice for choice in dict.fromkeys(choices) if choice]
    return "; ".join(f"'{name}'{nearest(name, options)}" for name in names)


def add_targets(targets_K: Integers, classes: Classes, taxa: Taxa) -> tuple[Classes, Integers]:
    """Add a class for each target that has none; return the column [K] that each class goes to."""
    labels, taxa_of = list(classes.labels), classes.taxa_K.tolist()
    # Reversed, so that of several classes of one taxon the first stays in the dictionary.
    columns = {taxon: k for k, taxon in reversed(list(enumerate(taxa_of))) if taxon >= 0}
    if ANIMAL in labels:
        columns[-1] = labels.index(ANIMAL)
    column_K = np.arange(len(classes))
    for k in np.flatnonzero(targets_K != classes.taxa_K):
        target = int(targets_K[k])
        if target not in columns:
            columns[target] = len(labels)
            name = taxa.names[target] if target >= 0 else ANIMAL
            # The id distinguishes a homonym from the label that exists already.
            labels.append(f"{name} ({taxa.ids[target]})" if name in labels else name)
            taxa_of.append(target)
        column_K[k] = columns[target]
    return Classes(tuple(labels), np.array(taxa_of, dtype=np.int64)), column_K


def prepare(settings: ListSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    if settings.file is None:
        warn_idle(settings, "mode", "walk_down", needs="--list")
        return None
    if settings.mode != "restrict":
        warn_idle(settings, "walk_down", needs="--list-mode restrict")
    names, where = read_list(settings.file), str(settings.file)
    if settings.mode == "restrict":
        targets_K = restrict_classes(names, classes, taxa, walk_down=settings.walk_down, where=where)
        return _prepare_restriction(targets_K, classes, taxa, f"restricted to {settings.file.name}")
    listed_K = match_classes(names, classes, taxa, where=where)
    admitted_K = listed_K | ~classes.animals_K
    notes = (f"{int(listed_K.sum())} classes of {settings.file.name}", "no_listed_class")

    def apply(rows: Rows) -> Rows:
        masked = renormalize(np.where(admitted_K, rows.probabilities_RK, 0.0))
        # A row is NaN as a whole or not at all.
        nothing_R = np.isnan(masked[:, 0]) & (rows.answers_R >= 0)
        return rows.passed("species_list", masked, notes, nothing_R.astype(np.int64))

    return apply


def _prepare_restriction(targets_K: Integers, classes: Classes, taxa: Taxa, note: str) -> Stage:
    extended, column_K = add_targets(targets_K, classes, taxa)

    def apply(rows: Rows) -> Rows:
        sums = merge_columns(rows.probabilities_RK, column_K, len(extended))
        return replace(rows, classes=extended).passed("species_list", sums, (note,))

    return apply


_OPTIONS = {"file": "--list", "mode": "--list-mode", "walk_down": "--walk-down"}
STAGES = {"species_list": StageKind(30, ListSettings, prepare, _OPTIONS, {"file": None})}

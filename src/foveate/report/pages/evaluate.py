"""The page of one evaluation: the table of metrics, and examples of held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import BoxChoice, LocatedPhrase, Search, parse_result
from foveate.pretrain.results import EvaluateResult
from foveate.report import parts
from foveate.report.examples import rules_of, where_groups, which_groups
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an evaluation."""
    r = parse_result(EvaluateResult, result)
    located = [example for example in r.examples if isinstance(example, LocatedPhrase)]
    facts = [("Model", r.model), ("Collection", r.collection), ("Split", r.split)]
    return simple_page(
        r.title or "What the model gets right",
        eyebrow="Evaluation",
        facts=[(name, value) for name, value in facts if value],
        groups=parts.table_groups(r.table, r.columns),
        columns=r.columns,
        interval_text=r.interval,
        searches=[example for example in r.examples if isinstance(example, Search)],
        titles={column.key: column.title for column in r.columns},
        where=where_groups(located, r.default),
        rules=rules_of(located, r.default),
        default=r.default,
        which=which_groups([example for example in r.examples if isinstance(example, BoxChoice)]),
        command=command_text(r.command),
    )

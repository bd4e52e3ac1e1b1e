"""Settings behind the options of verbs: Python users meet the bounds of the command line, named by field and value."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from processes import environment

from foveate.caption.captioner import CaptionRunSettings
from foveate.caption.settings import AuditSettings, EvaluationSettings, RegionRunSettings
from foveate.caption.shares import MixSettings, parse_weights
from foveate.cli.fields import Fields
from foveate.core.errors import UserError
from foveate.core.recipes import Settings, format_overrides, parse_overrides, parse_pairs, validate
from foveate.pretrain.caches import CacheSettings
from foveate.pretrain.export import ExportSettings
from foveate.records.importers.formats import CollectSettings
from foveate.records.inspection import InspectionSettings
from foveate.records.removal import RemovalSettings
from foveate.search.settings import HitSettings, IndexSettings, LocateSettings, SearchSettings
from naming import raises_naming
from verbs import sub_verbs


@pytest.mark.parametrize(
    ("model", "values", "names"),
    [
        (AuditSettings, {"context": 7}, ("context", "7", "8")),
        (AuditSettings, {"entity": "heads"}, ("entity", "'heads'", "'head'")),
        (AuditSettings, {"gallery": 201}, ("gallery", "201")),
        (CacheSettings, {"remove": "unusd"}, ("remove", "'unusd'", "'unused'")),
        (CacheSettings, {"days": -1}, ("days", "-1")),
        (CaptionRunSettings, {"concurrency": 0}, ("concurrency", "0")),
        (CollectSettings, {"group_by": "foldr"}, ("group_by", "'foldr'", "'folder'")),
        (CollectSettings, {"split": "train:1"}, ("split", "train:1", "train=0.8")),
        (CollectSettings, {"split": "train=half"}, ("split.train", "half")),
        (CollectSettings, {"pathcolumn": "x"}, ("pathcolumn", "'path_column'")),
        (EvaluationSettings, {"limit": 0}, ("limit", "0")),
        (ExportSettings, {"to": "embeddings", "format": "npy"}, ("format", "'npy'", "'npz'")),
        (HitSettings, {"kind": "region"}, ("kind", "'region'", "'regions'")),
        (IndexSettings, {"precision": "float64"}, ("precision", "float64", "float32")),
        (InspectionSettings, {"samples": 501}, ("samples", "501")),
        (LocateSettings, {"rule": "haed"}, ("rule", "'haed'", "'head'")),
        (MixSettings, {"weights": "alt:1"}, ("weights", "alt:1", "alt=.5")),
        (MixSettings, {"missing": "renormalise"}, ("missing", "renormalise", "'renormalize'")),
        (RegionRunSettings, {"batch": 4097}, ("batch", "4097")),
        (RemovalSettings, {"where": ("site",)}, ("where", "site", "field=value")),
        (RemovalSettings, {"keep_bytes": True, "purge": True}, ("--keep-bytes", "--purge")),
        (SearchSettings, {"count": 1001}, ("count", "1001")),
        (SearchSettings, {"box": "0,0,1"}, ("box", "0,0,1", "x1,y1,x2,y2")),
        (SearchSettings, {"box": "0,0,30,30"}, ("--box", "0,0,30,30", "--pixels")),
        (SearchSettings, {"pixels": True}, ("--pixels", "--box")),
        (SearchSettings, {"weights": ("text=much",)}, ("weights.text", "much")),
    ],
)
def test_a_value_out_of_bounds_is_named(model: type[Settings], values: dict[str, Any], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        validate(model, values, where="settings")


def test_texts_of_the_command_line_become_values() -> None:
    search = validate(SearchSettings, {"box": ("0.1", "0", "0.5", "1"), "weights": ("text=0.5", "box=2")}, where="x")
    assert search.box == (0.1, 0, 0.5, 1)
    assert search.weights == {"text": 0.5, "box": 2}
    assert validate(CollectSettings, {"split": "a=0.25, b=0.75"}, where="x").split == {"a": 0.25, "b": 0.75}
    assert validate(CollectSettings, {"split": "none"}, where="x").split is None
    assert CollectSettings().split == {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert validate(AuditSettings, {"formats": (" DSC+", "alt")}, where="x").formats == ("dsc_plus", "alt")
    assert validate(RemovalSettings, {"where": ("color=red, green", "site= A")}, where="x").where == {
        "color": "red, green",
        "site": " A",
    }


def test_pairs_and_weights() -> None:
    assert parse_pairs(["a=1", "b = x=y"], hint="") == {"a": "1", "b": " x=y"}
    for texts in (["a"], ["=1"], ["a="], ["a=1", "a=2"]):
        with raises_naming(UserError, texts[-1]):
            parse_pairs(texts, hint="write it as NAME=VALUE")
    assert parse_weights("alt=.5, ssc=1,") == {"alt": 0.5, "ssc": 1.0}
    for text in ("", "alt", "alt=x", "alt=1,alt=2"):
        with raises_naming(UserError, "alt=.5,ssc=.5" if text != "alt=1,alt=2" else "'alt'"):
            parse_weights(text)


def test_overrides_are_read_as_they_were_written() -> None:
    values = {"training": {"precision": "bf16", "seed": 3, "workers": None}, "initial": "yes", "data": {"kinds": ["a"]}}
    assert parse_overrides(format_overrides(values)) == {
        "training": {"precision": "bf16", "seed": 3},
        "initial": "yes",
        "data": {"kinds": ["a"]},
    }


def test_the_settings_of_verbs_load_no_torch() -> None:
    """Help is made from the settings models: it must not wait for torch."""
    modules = {
        parameter.model.partition(":")[0]
        for _, command in sub_verbs()
        for parameter in command.params
        if isinstance(parameter, Fields)
    }
    program = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name); print(name, *sys.modules)"
    )
    arguments = [sys.executable, "-c", program, *sorted(modules)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert set(loaded) == modules
    assert [name for name, names in loaded.items() if "torch" in names][:1] == []

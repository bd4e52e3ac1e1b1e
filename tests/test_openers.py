"""Every opener of a model resolves names alike: a shipped name, a folder, the hub; and says what is wrong alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from foveate.adapt.folder import load_adapter
from foveate.adapt.load_backbone import parse_backbone
from foveate.adapt.predictor import open_adapter
from foveate.caption.backends.foveate import FoveateSettings, open_captioner
from foveate.core.errors import UserError
from foveate.core.hub import KINDS, find, locate
from foveate.core.paths import DATA
from foveate.language.open import open_language_model, read_language_config
from foveate.multimodal.opening import find_native_folder, open_mllm
from foveate.search.api import open_model
from foveate.serve.adapters import open_served
from foveate.species.folder import open_species
from foveate.video.networks import open_network
from foveate.vision.classifier import open_classifier
from foveate.vision.localizer.sources import open_localizer

# Opener -> the kind of the names that it takes.
OPENERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "open_mllm": (open_mllm, "multimodal"),
    "open_network": (open_network, "multimodal"),
    "open_captioner": (lambda name: open_captioner(FoveateSettings(model=name)), "multimodal"),
    "open_localizer": (open_localizer, "localizer"),
    "open_model": (open_model, "localizer"),
    "open_served": (open_served, "served"),
    "open_species": (open_species, "species"),
    "open_adapter": (open_adapter, "adapter"),
    "open_classifier": (open_classifier, "classifier"),
    "parse_backbone": (parse_backbone, "backbone"),
    "open_language_model": (open_language_model, "language"),
    "read_language_config": (read_language_config, "language"),
}
# Bad name -> parts of the sentence.
NAMES = {
    "no-such": ("no such folder (got 'no-such'); expected ",),
    "deep/er/no-such": ("no such folder (got 'deep/er/no-such'); expected ",),
    "~/no-such": ("no such folder (got '~/no-such'); expected ",),
    "./a-file": ("a file, not a folder (got './a-file'); expected ",),
    "empty": ("empty",),
    "run": ("'run/model'", "Did you mean"),
    "other": ("other",),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what is no model, and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a-file").write_text("x")
    for name in ("empty", "run/model", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("run/model", "other"):
        (tmp_path / name / "config.json").write_text(json.dumps({"kind": "other", "format": 1}))
    return tmp_path


@pytest.mark.parametrize("bad", NAMES)
@pytest.mark.parametrize("opener", OPENERS)
def test_a_bad_name_is_refused_with_the_same_sentence(opener: str, bad: str) -> None:
    opens, kind = OPENERS[opener]
    with pytest.raises(UserError) as problem:
        opens(bad)
    said = str(problem.value)
    assert all(part in said for part in NAMES[bad]), said
    rule = KINDS[kind]
    if "(got '" in NAMES[bad][0]:
        assert said.startswith(f"{rule.field}: ")
        assert all(name in said for name in rule.shipped)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_repository_is_looked_up_or_the_error_says_what_is_expected(opener: str) -> None:
    opens, kind = OPENERS[opener]
    with pytest.raises(UserError) as problem:
        opens("owner/name")
    expected = "not in the cache, and offline mode is on" if KINDS[kind].on_hub else "no such folder (got 'owner/name')"
    assert expected in str(problem.value)


@pytest.mark.parametrize("opener", [name for name, (_, kind) in OPENERS.items() if KINDS[kind].shipped])
def test_a_shipped_name_is_suggested(opener: str) -> None:
    opens, kind = OPENERS[opener]
    name = KINDS[kind].shipped[-1]
    with pytest.raises(UserError, match=f"Did you mean '{name}'"):
        opens(f"{name}x")


def test_a_shipped_name_of_another_kind_is_suggested() -> None:
    with pytest.raises(UserError, match="Did you mean 'mini'"):
        locate("localizer", "minni")


@pytest.mark.parametrize("kind", [kind for kind, rule in KINDS.items() if "mini" not in rule.shipped])
def test_a_shipped_name_of_another_kind_is_recognized(kind: str) -> None:
    with pytest.raises(UserError, match="the name of a multimodal model that ships with Foveate"):
        locate(kind, "mini")


def test_an_adapter_is_opened_from_a_folder_alone() -> None:
    with pytest.raises(UserError, match="adapter: no such folder"):
        load_adapter(nn.Linear(2, 2), "no-such")


def test_the_order_is_shipped_name_folder_hub(here: Path) -> None:
    for name in ("mini", "owner/name", "owner/dated@v1"):
        (here / name).mkdir(parents=True)
        (here / name / "config.json").write_text("{}")
    assert find_native_folder("mini") == DATA / "mini"
    assert find_native_folder("./mini") == Path("mini")
    assert find("localizer", "owner/name").folder == Path("owner/name")
    assert find("localizer", "owner/dated@v1").folder == Path("owner/dated@v1")
    assert locate("localizer", "owner/other") is locate("localizer", "owner/other@v1") is None
    with pytest.raises(UserError, match="a folder has no revisions"):
        find("localizer", "owner/name", revision="v1")
    with pytest.raises(UserError, match="two revisions"):
        find("localizer", "owner/other@v1", revision="v2")

"""The captioning wing's `http` backend before a served captioner: the captions of the `foveate` backend, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import serving

from caption.tiny_captioner import save_captioner
from foveate.caption.backends.foveate import FoveateSettings
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.run import caption
from foveate.chat.client import ChatSettings
from foveate.core.runs import RunFolder
from foveate.records.captions import is_usable_alt_text, select_alt_text
from foveate.records.collection import Collection
from foveate.serve.adapters import open_served
from foveate_labs.worlds.scenes import build_scenes

KEY = "a secret"


@pytest.mark.parametrize("groups", [("short-captions",), pytest.param(("refer-ground",), marks=pytest.mark.slow)])
def test_the_http_backend_gets_what_the_local_one_writes(
    groups: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all formats, by a captioner and by a model that was never trained on captions.

    Only a second question about afc differs: its prompt has no alt-text, which the server does not know then.
    """
    monkeypatch.setenv("SERVED_KEY", KEY)
    folder = save_captioner(tmp_path / "captioner", groups=groups)
    rows: dict[str, dict[tuple[str, str], Any]] = {}
    with serving(open_served(folder, device="cpu"), key=KEY) as address:
        backends = {
            "http": ChatSettings(
                endpoint=(f"{address}/v1",), model="captioner", api_key_env="SERVED_KEY", concurrency=8
            ),
            "foveate": FoveateSettings(model=str(folder), device="cpu"),
        }
        for name, backend in backends.items():
            path = tmp_path / name / "scenes"
            build_scenes(path, train=5, seed=1, size=96)
            settings = CaptionSettings(formats=CAPTION_KINDS, temperature=1.0, max_tokens=60)
            run = RunFolder.create(tmp_path / name / "run")
            assert caption(path, settings, backend=name, backend_settings=backend, run=run).failure is None
            with Collection.open(path) as collection:
                captions = [row for row in collection.table("captions").to_pylist() if row["request"]]
                errors = collection.table("caption_errors").to_pylist()
                alts = [is_usable_alt_text(select_alt_text(collection.read_captions(row))) for row in range(5)]
            assert len(captions) + len(errors) == 5 * len(CAPTION_KINDS)
            assert set(alts) == {False, True}
            rows[name] = {
                (row["key"], row["kind"]): (row.get("text"), row.get("error"), row.get("raw"))
                for row in [*captions, *errors]
                if row["kind"] != "afc" or not json.loads(row["details"]).get("retry")
            }
    assert rows["http"] == rows["foveate"]
    assert len(rows["http"]) > 3 * len(alts)

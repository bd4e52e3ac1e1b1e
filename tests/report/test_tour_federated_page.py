"""The tour's page with its federated part: two maps in three colorings, groups with images, what left each client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_run

from foveate.core.errors import UserError
from foveate.report import render
from naming import raises_naming


def federated(image: str) -> dict[str, Any]:
    quality = {"knn": 0.444, "trustworthiness": 0.742, "foreign": 0.588}
    drawn = {"quality": quality, "bytes_up": 82_262_144, "bytes_down": 196_888_784}
    positions = [[0.0, 0.0], [1.0, 0.5], [2.0, -1.0], [0.5, 0.5]]
    clients = [
        {"name": f"client {n}", "images": 700 + n, "kinds": [kind], "groups": 48_511, "maps": {"FedNE": 1, "B": 2}}
        for n, kind in enumerate(("Food & <b>Drink", "Objects"))
    ]
    return {
        "images": 1401, "features": 432, "clusters": 2, "method": "consensus, 1 round of refinement", "rounds": 40,
        "held_out": 279, "sentence": "Groups match <little>.",
        "groupings": [{"title": "all", "nmi": 0.287, "purity": 0.487}],
        "maps": [{"title": "FedNE", **drawn, "positions": positions, "notes": {"a surrogate fails": 2}},
                 {"title": "Federated averaging", **drawn, "positions": positions}],
        "owners": [0, 0, 1, 1], "labels": ["a", "a", "b", "b"], "groups": [0, 1, 0, 1], "clients": clients,
        "examples": [{"group": 0, "size": 2, "clients": 1, "kind": "Objects", "share": 0.5,
                      "images": [{"image": image, "kind": "Objects"}]}],
    }  # fmt: skip


def test_the_federated_part_is_on_the_page(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    shown = federated(result["pictures"]["located"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "federated": shown})).read_text(encoding="utf-8")
    assert 'href="#federated"' in page
    section = page.split('id="federated"', 1)[1].split("</section>", 1)[0]
    assert section.count('<svg class="map"') == 6
    for said in ("Images by kind", "44%", "Federated averaging: 44%",
                 "By client", "By group", "Groups match &lt;little&gt;.", "Food &amp; &lt;b&gt;Drink",
                 "has images of one kind", "50% Objects", "images of 1 client ", "0.287", "82.3 MB",
                 "a surrogate fails (2 times)",
                 "97.0 kB from all of them", "measured on 279 images"):  # fmt: skip
        assert said in section, said


def test_without_it_nothing_is_said(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert "Eight clients" not in page


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    shown = federated(result["pictures"]["located"][0]["image"])
    del shown["owners"]
    with raises_naming(UserError, "owners"):
        render(made_run.write_run(tmp_path, {**result, "federated": shown}))

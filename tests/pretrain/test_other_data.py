"""A run resumes only on the images, texts and regions that it was begun with; what is not drawn may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_of_tiny import make

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import PretrainRun, pretrain
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate.training import checkpoint, loop
from foveate.training import run as module
from naming import raises_naming

SHORT = {"steps": 1, "workers": 0}
REFUSED = ("was trained on other data", "shapes", "step-00000001")


def run(collection: Path, path: Path, recipe: PretrainRecipe | None = None) -> PretrainRun:
    return pretrain(
        recipe or tiny.recipe(training=SHORT), Collection.open(collection), path, device="cpu", evaluate_split=None
    )


@pytest.fixture(scope="module")
def trained(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other-data") / "run"
    assert run(tiny_collection, path).status == "finished"
    return path


@pytest.fixture
def again(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "again"))


@pytest.fixture
def copy(tiny_collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def add(collection: Path, table: str, **row: Any) -> None:
    with AnnotationAppender(collection, purpose="test") as appender:
        appender.append(table, [row], Provenance("test"))


def add_caption(collection: Path, *, kind: str = "alt", key: str = "train-00") -> None:
    add(collection, "captions", key=key, kind=kind, text="something else")


def draw_other_images(collection: Path) -> None:
    """Another collection whose rows have the same numbers, keys, texts and regions."""
    old = collection.rename(collection.with_name("old"))
    with tiny.CollectionWriter(collection, name="shapes", license="other", source="test") as writer:
        for record in Collection.open(old):
            image = tiny.image_bytes(tiny.draw([], size=(record.width, record.height), seed=99))
            annotations = {"captions": record.captions, "regions": record.regions, "labels": record.labels}
            writer.add(record.key, image, **annotations, split=record.split)


def content(collection: Path, **changes: Any) -> str:
    return make(Collection.open(collection), collection / "cache", **changes).hash_content()


@pytest.mark.parametrize("change", [add_caption, tiny.label, draw_other_images])
def test_captions_regions_and_images_count(change: Callable[[Path], object], copy: Path) -> None:
    before = content(copy)
    assert content(copy) == before
    change(copy)
    assert content(copy) != before


def test_what_is_not_drawn_does_not_count(copy: Path) -> None:
    without_regions = {"regions": {"method": "none"}}
    before = content(copy), content(copy, **without_regions)
    add_caption(copy, kind="dsc")
    add_caption(copy, key="test-00")
    add(copy, "regions", key="test-00", x1=0.1, y1=0.1, x2=0.4, y2=0.5, phrase="a zebra", score=0.5)
    add(copy, "labels", key="train-00", field="category", value="zebra")
    assert content(copy) == before[0]
    tiny.label(copy)
    assert content(copy, **without_regions) == before[1]


def test_a_finished_run_is_not_taken_for_one_of_other_captions(copy: Path, again: Path) -> None:
    assert run(copy, again).status == "finished"
    before = (again / "result.json").read_bytes()
    add_caption(copy)
    with raises_naming(UserError, *REFUSED):
        run(copy, again)
    assert (again / "result.json").read_bytes() == before


def test_regions_after_a_training_without_any_are_refused(copy: Path, tiny_collection: Path, tmp_path: Path) -> None:
    """Else a Prompter that was never trained would be saved as one that localizes."""
    shutil.rmtree(copy / "annotations" / "regions")
    assert not run(copy, tmp_path / "run").result.localizes
    with raises_naming(UserError, *REFUSED):
        run(tiny_collection, tmp_path / "run")


def test_any_collection_of_a_mixture_is_named(copy: Path, tiny_collection: Path, tmp_path: Path) -> None:
    description = json.loads((copy / "collection.json").read_text(encoding="utf-8"))
    (copy / "collection.json").write_text(json.dumps({**description, "name": "second"}), encoding="utf-8")
    recipe = tiny.recipe(data={"collections": {str(copy): 1.0}}, training=SHORT)
    run(tiny_collection, tmp_path / "run", recipe)
    add_caption(copy)
    with raises_naming(UserError, "was trained on other data", "second"):
        run(tiny_collection, tmp_path / "run", recipe)


def test_a_run_begun_before_contents_were_hashed_resumes(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(loop.StopRequest):
        @property
        def signal_name(self) -> str | None:
            return "SIGTERM"

        @signal_name.setter
        def signal_name(self, value: str | None) -> None:
            assert value is None

    def earlier(*arguments: Any, content: object) -> loop.TrainingOutcome:
        return loop.train(*arguments)

    recipe = tiny.recipe(training={"steps": 2, "workers": 0})
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", Stop)
        patched.setattr(module, "train", earlier)
        assert run(copy, tmp_path / "run", recipe).status == "stopped"
    assert run(copy, tmp_path / "run", recipe).status == "finished"
    state = checkpoint.read_state(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert state["identity"]["content"] == {"shapes": content(copy)}

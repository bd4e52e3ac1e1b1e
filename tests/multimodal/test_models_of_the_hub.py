"""A model named OWNER/NAME is downloaded once, pinned, and answers as its folder does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.multimodal.foreign import open_foreign
from foveate.multimodal.opening import open_mllm
from local_hub import COMMIT, Hub, serving_this_process
from multimodal.foreign_models import BUILDERS, save
from naming import raises_naming


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub of this process, with an empty cache."""
    root = tmp_path_factory.mktemp("hub")
    folders = {f"a/{family}": save(family, root / family) for family in BUILDERS}
    hub = Hub({**folders, "a/cut": folders["a/llava"], "a/gated": folders["a/llava"]}, cut={"a/cut"}, gated={"a/gated"})
    with serving_this_process(hub, root / "cache"):
        yield hub


@pytest.mark.parametrize("family", BUILDERS)
def test_a_model_of_the_hub_answers_as_its_folder(family: str, hub: Hub) -> None:
    image = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    expected = open_foreign(str(hub.repositories[f"a/{family}"])).ask(image, "what is in the image", max_tokens=6)
    assert open_mllm(f"a/{family}").ask(image, "what is in the image", max_tokens=6) == expected
    downloads = [request for request in hub.asked if request.startswith("GET") and f"/a/{family}/resolve/" in request]
    assert len(downloads) == len(set(downloads))
    assert all(COMMIT in request for request in downloads)
    # The second time nothing is downloaded.
    open_mllm(f"a/{family}")
    assert [request for request in hub.asked if request in downloads] == downloads


@pytest.mark.parametrize(
    ("name", "why"), [("a/cut", "broke off"), ("a/gated", "accept its terms"), ("a/absent", "no repository")]
)
def test_a_model_that_cannot_be_downloaded_is_named(name: str, why: str, hub: Hub) -> None:
    with raises_naming(UserError, name, why):
        open_mllm(name)

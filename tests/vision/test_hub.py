"""Where weights come from: folders, pinned hub repositories, and what is said when neither is there."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path

import pytest
import torch
from foreign import save_clip, save_open_clip, save_timm

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, fetch, is_reachable
from foveate.vision.hf.clip import TransformersClipImageEncoder, TransformersClipTextEncoder
from foveate.vision.minilm import MiniLMEncoder, package_folder
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder
from foveate.vision.timm import TimmImageEncoder
from hub_cache import COMMIT, cache, snapshot
from naming import raises_naming

__all__ = ["cache"]


def test_a_cached_repository_is_pinned_to_its_commit(cache: Path) -> None:
    save_clip(snapshot(cache, "someone/tiny-clip"))
    for revision in (None, "main", COMMIT):
        found = fetch("someone/tiny-clip", revision=revision)
        assert found.commit == COMMIT
        assert (found.folder / "model.safetensors").is_file()
    image = TransformersClipImageEncoder(source="someone/tiny-clip")
    text = TransformersClipTextEncoder(source="someone/tiny-clip", offline=True)
    assert image.architecture()["revision"] == text.architecture()["revision"] == COMMIT
    assert text.frozen_features(["a cat"]).shape == (1, 16)


def test_other_libraries_read_the_cache_too(cache: Path) -> None:
    save_open_clip(snapshot(cache, "someone/tiny-open-clip"))
    image = OpenClipImageEncoder(source="someone/tiny-open-clip")
    text = OpenClipTextEncoder(source="someone/tiny-open-clip", revision=COMMIT)
    assert image.architecture()["revision"] == text.architecture()["revision"] == COMMIT
    assert image.trained_scale == pytest.approx(torch.tensor(3.5).exp().item())
    assert text.frozen_features(["a cat"]).shape == (1, 16)
    save_timm(snapshot(cache, "someone/tiny-vit"))
    assert TimmImageEncoder(source="someone/tiny-vit", embed_dim=4).architecture()["revision"] == COMMIT


def test_minilm_from_the_hub_is_named_by_its_bytes_and_pinned(cache: Path) -> None:
    folder = snapshot(cache, "someone/sentences")
    for path in package_folder().iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    encoder = MiniLMEncoder(embed_dim=8, model="someone/sentences")
    assert encoder.architecture() == {"revision": COMMIT}
    assert encoder.fingerprint() == MiniLMEncoder(embed_dim=8, model=str(package_folder())).fingerprint()
    assert "main" not in encoder.fingerprint()
    expected = MiniLMEncoder(embed_dim=8).frozen_features(["a cat"])
    assert torch.equal(encoder.frozen_features(["a cat"]), expected)


def test_what_is_out_of_reach_is_explained(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as problem:
        fetch("someone/no-such-model", revision="abc", field="source of 'siglip'")
    sentence = str(problem.value)
    assert "source of 'siglip' 'someone/no-such-model' at revision 'abc': not in the cache, and offline" in sentence
    assert "`hf download someone/no-such-model --revision abc --local-dir FOLDER`" in sentence
    for wrong in ("./nothing", str(tmp_path / "nothing"), "two/slashes/here", "", "name"):
        with raises_naming(UserError, "OWNER/NAME"):
            fetch(wrong)
    with raises_naming(UserError, "x"):
        fetch(str(tmp_path), revision="x")


def test_the_hub_out_of_reach_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    with raises_naming(UserError, "http://127.0.0.1:9"):
        fetch("someone/no-such-model")


def test_a_connection_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert is_reachable(address)
    server.close()
    assert not is_reachable(address)
    # The look-up of a name knows no timeout.
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    assert not is_reachable("https://huggingface.co", seconds=0.2)
    assert time.monotonic() - start < 5


def test_a_proxy_is_asked_instead_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setattr(socket, "create_connection", lambda target, **_: asked.append(target) or io.BytesIO())
    assert is_reachable("https://huggingface.co")
    assert asked == [("proxy.example", 3128)]


def test_pickles_are_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with raises_naming(UserError, "model.safetensors"):
        TransformersClipImageEncoder(source=str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with raises_naming(UserError, "pytorch_model.bin"):
        TransformersClipImageEncoder(source=str(tmp_path))


def test_the_digest_names_the_bytes(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes([number // 2]) * 9)
    digests = [Checkpoint(name, tmp_path / name).digest() for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]

"""Exports to open_clip and transformers: loaded there, the same results; what does not fit is refused by its field."""

from __future__ import annotations

import html
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import torch
from exported import METRICS, noise, opened, run_card, saved
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

import tiny
from foveate.core.errors import UserError
from foveate.core.export_folder import staged_folder
from foveate.pretrain.export import export
from foveate.pretrain.region_files import read_regions
from foveate.pretrain.train import build_model
from foveate.records.geometry import View
from foveate.vision.localizer.folder import save_model
from foveate.vision.open_clip.export import clip_image_processor, clip_tokenizer
from foveate.vision.preprocess import Preprocess, place_image, render_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vision"))
import foreign  # noqa: E402

from naming import raises_naming

SCRIPTS = [
    "a red boat!",
    "",
    "Der große Hund läuft über die Straße",
    "naïve café, ñandú ÀÉ",
    "красная лодка в ГАВАНИ",
    "κόκκινη βάρκα",
    "赤い船、港に",
    "红色的小船",
    "빨간 배",
    "قارب أحمر",
    "סירה אדומה",
    "लाल नाव",
    "เรือสีแดง",
    "ტექსტი",
    "տեքստ",
    "İstanbul IĞDIR",
    "it's 42 km & 50%; don't, they'll",
    "emoji 🚤 🇩🇪 👩‍🚒",
    "x\u0301e\u0301 combining",
    "  many   spaces\n and a tab\t",
    "Ⅷ ½ ² №",
    "a_b-c/d <b>bold</b> (x)",
    "word " * 100,
]
REPAIRED = ["“curly” quotes", "ﬁsh", "ＦＵＬＬ", "salt &amp; pepper", "ΘΑΛΑΣΣΑΣ"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("export") / "model", metrics=METRICS)


@pytest.fixture(scope="module")
def in_open_clip(folder: Path) -> Path:
    return export(folder, to="open_clip", device="cpu")[0]


@pytest.fixture(scope="module")
def in_transformers(folder: Path) -> Path:
    return export(folder, to="transformers", device="cpu")[0]


@torch.no_grad()
def test_open_clip_loads_it_with_difference_zero(folder: Path, in_open_clip: Path) -> None:
    import open_clip

    ours = opened(folder)
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{in_open_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{in_open_clip}")
    theirs.eval()
    normalized = ours.image_encoder.normalized(noise())
    assert torch.equal(theirs.encode_image(normalized), ours.encode_image_tokens(noise()).pooled)
    # One text at a time: batched in another order, the last bit may differ on processors without AVX.
    for text in SCRIPTS:
        assert torch.equal(theirs.encode_text(tokenizer([text])), ours.embed_texts([text]))
    assert theirs.logit_scale.exp().item() == pytest.approx(ours.logit_scale().item())
    assert preprocess(Image.new("RGB", (50, 30))).shape == (3, 64, 64)


@torch.no_grad()
def test_what_the_open_clip_card_says_works(folder: Path, in_open_clip: Path) -> None:
    found = run_card(in_open_clip, texts_RE=torch.ones(1, 32))
    ours = opened(folder)
    tokens = ours.image_encoder(torch.zeros(1, 3, 64, 64))
    expected = ours.encode_regions(tokens, found["boxes_R4"], found["image_R"])
    assert torch.equal(found["z_RE"], expected)
    assert torch.equal(found["located_R4"], ours.ground(tokens, torch.ones(1, 32), found["image_R"]))


@pytest.mark.parametrize("method", ["roi", "none"])
@torch.no_grad()
def test_region_modules_lie_beside(method: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "model", regions={"method": method})
    target = export(source, to="open_clip", device="cpu", out=tmp_path / "out")[0]
    names = {path.name for path in target.iterdir()}
    assert ("prompter.safetensors" in names) == (method == "roi")
    found = run_card(target)
    if method == "roi":
        ours = opened(source)
        tokens = ours.image_encoder(torch.zeros(1, 3, 64, 64))
        assert torch.equal(found["z_RE"], ours.encode_regions(tokens, found["boxes_R4"], found["image_R"]))


def test_regions_are_read_strictly(in_open_clip: Path, tmp_path: Path) -> None:
    config = json.loads((in_open_clip / "prompter.json").read_text())
    with raises_naming(UserError, "prompter.json"):
        read_regions(tmp_path)
    (tmp_path / "prompter.json").write_text(json.dumps({**config, "kind": "x"}))
    with raises_naming(UserError, "foveate-regions"):
        read_regions(tmp_path)
    (tmp_path / "prompter.json").write_text(json.dumps(config))
    with raises_naming(UserError, "prompter.safetensors"):
        read_regions(tmp_path)
    (tmp_path / "prompter.safetensors").write_bytes((in_open_clip / "prompter.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        read_regions(tmp_path)


@torch.no_grad()
def test_transformers_loads_it_with_the_same_results(folder: Path, in_transformers: Path) -> None:
    ours = opened(folder)
    theirs, report = CLIPModel.from_pretrained(in_transformers, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = CLIPProcessor.from_pretrained(in_transformers)
    pixels = ours.image_encoder.normalized(noise())
    image_BE = theirs.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(image_BE, ours.image_encoder(pixels).pooled, atol=2e-6, rtol=0)
    inputs = processor(text=SCRIPTS, padding=True, truncation=True, return_tensors="pt")
    text_BE = theirs.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(text_BE, ours.embed_texts(SCRIPTS), atol=2e-6, rtol=0)
    said = theirs(pixel_values=pixels, **inputs).logits_per_image
    expected = ours.logit_scale() * ours.encode_image(pixels) @ ours.encode_text(SCRIPTS).T
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_the_transformers_card_says_works(folder: Path, in_transformers: Path) -> None:
    found = run_card(in_transformers, texts_RE=torch.ones(1, 32))
    ours = opened(folder)
    tokens = ours.image_encoder(torch.zeros(1, 3, 64, 64))
    expected = ours.encode_regions(tokens, found["boxes_R4"], found["image_R"])
    torch.testing.assert_close(found["z_RE"], expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    "vision",
    [
        {"mlp_ratio": 3.0},
        pytest.param({"pos_embed_type": "sin_cos_2d"}, marks=pytest.mark.slow),
        pytest.param({"norm_kwargs": {"eps": 1e-3}}, marks=pytest.mark.slow),
        pytest.param({"final_ln_after_pool": True}, marks=pytest.mark.slow),
    ],
)
def test_standard_variants(vision: dict[str, Any], tmp_path: Path) -> None:
    model = {"model": "ViT-B-32-quickgelu"}
    source = saved(tmp_path / "model", image_encoder={**model, "vision": vision}, text_encoder=model)
    target, result, _ = export(source, to="transformers", device="cpu", out=tmp_path / "out")
    assert json.loads((target / "config.json").read_text())["vision_config"]["hidden_act"] == "quick_gelu"
    assert max(result.differences.values()) < 5e-6


def ids_until_end(ids_L: torch.Tensor) -> list[int]:
    return ids_L[: int((ids_L == 49407).nonzero()[0]) + 1].tolist()


def test_token_ids_are_equal(in_transformers: Path) -> None:
    import open_clip

    tokenizer = CLIPTokenizer.from_pretrained(in_transformers)
    own = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    for text in SCRIPTS:
        found = tokenizer([text], truncation=True, padding="max_length", return_tensors="pt").input_ids[0]
        assert len(found) == 16
        assert ids_until_end(found) == ids_until_end(own([text])[0]), text


def test_texts_to_repair_differ_and_are_equal_once_repaired_as_the_card_says() -> None:
    import open_clip

    tokenizer, own = clip_tokenizer(77), open_clip.get_tokenizer("ViT-B-32")
    for text in REPAIRED:
        expected = ids_until_end(own([text])[0])
        assert tokenizer(text).input_ids != expected, text
        assert tokenizer(html.unescape(html.unescape(ftfy.fix_text(text))).lower()).input_ids == expected, text


def test_old_releases_find_their_files(in_transformers: Path) -> None:
    vocabulary = json.loads((in_transformers / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == 49408
    assert vocabulary["<|endoftext|>"] == 49407
    merges = (in_transformers / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version")
    assert len(merges) == 48895
    rebuilt = CLIPTokenizer(vocab=vocabulary, merges=[tuple(line.split()) for line in merges[1:]])
    assert rebuilt("a red boat").input_ids == CLIPTokenizer.from_pretrained(in_transformers)("a red boat").input_ids
    assert json.loads((in_transformers / "preprocessor_config.json").read_text())["do_center_crop"] is True


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "shift"), [((64, 64), 0), ((500, 201), 0), ((37, 50), 0), ((128, 7), 0), ((100, 64), 1), ((64, 100), 1)]
)
def test_images_reach_the_model_alike(size: tuple[int, int], shift: int, interpolation: str) -> None:
    """The letterbox of the card: equal up to rounding, and up to one pixel of place where the padding is odd."""
    preprocess = Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation=interpolation)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    ours = preprocess.normalize(render_image(preprocess, image, place_image(preprocess, size, View())))
    theirs = clip_image_processor(preprocess)(images=image, return_tensors="pt").pixel_values[0]
    moved = torch.roll(ours, shift, dims=1 if size[0] > size[1] else 2)
    steps = (moved - theirs).abs() * 255 * torch.tensor(preprocess.std)[:, None, None]
    assert steps.max() < 1.01
    assert steps.mean() < 0.3


def test_center_crops_reach_the_model_alike() -> None:
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", geometry="center_crop")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((96, 64))
    ours = preprocess.normalize(render_image(preprocess, image, place_image(preprocess, image.size, View())))
    theirs = clip_image_processor(preprocess)(images=image, return_tensors="pt").pixel_values[0]
    assert (ours - theirs).abs().max() < 0.1


LITE0 = {"image_encoder": {"kind": "lite0", "image_size": 64, "width": 32}, "text_encoder": {"kind": "minilm"}}


def lite0(folder: Path) -> Path:
    return save_model(build_model(tiny.recipe().model_copy(update=LITE0)), folder)


@pytest.mark.parametrize("target", ["open_clip", "transformers"])
def test_other_encoders_are_refused_with_what_is_possible(target: str, tmp_path: Path) -> None:
    source = lite0(tmp_path / "model")
    with raises_naming(UserError, "lite0", "minilm"):
        export(source, to=target, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize(
    ("encoder", "field", "value"),
    [
        ("vision", "pool_type", "avg"),
        ("vision", "no_ln_pre", True),
        ("vision", "ls_init_value", 0.1),
        ("vision", "ls_init_value", 0.0),
        ("vision", "qk_norm", True),
        ("text", "no_causal_mask", True),
        ("text", "proj_bias", True),
        ("text", "pool_type", "last"),
        ("text", "vocab_size", 500),
    ],
)
def test_towers_that_clip_model_does_not_compute(encoder: str, field: str, value: object, tmp_path: Path) -> None:
    name = {"vision": "image_encoder", "text": "text_encoder"}[encoder]
    source = saved(tmp_path / "model", **{name: {encoder: {field: value}}})
    with raises_naming(UserError, f"{encoder}_cfg.{field}", repr(value)):
        export(source, to="transformers", device="cpu")


def test_images_that_clip_image_processor_cannot_make() -> None:
    half = (0.5, 0.5, 0.5)
    with raises_naming(UserError, "preprocess.fill", "[9", "0", "0]"):
        clip_image_processor(Preprocess(32, half, half, fill=(9, 0, 0)))
    with raises_naming(UserError, "lanczos", "preprocess.interpolation"):
        clip_image_processor(Preprocess(32, half, half, interpolation="lanczos"))


def test_the_bias_of_a_sigmoid_loss(tmp_path: Path) -> None:
    import open_clip

    source = saved(tmp_path / "model", loss="sigmoid")
    bias = float(opened(source).logit_bias())
    target = export(source, to="open_clip", device="cpu", out=tmp_path / "open")[0]
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{target}")
    assert theirs.logit_bias.item() == pytest.approx(bias)
    _, result, _ = export(source, to="transformers", device="cpu", out=tmp_path / "hf")
    assert "has no bias of the logits" in result.notes[0]


def test_a_bias_of_regions_alone_is_none_of_the_towers(tmp_path: Path) -> None:
    import open_clip

    source = saved(tmp_path / "model", regions={"loss": "sigmoid"})
    target = export(source, to="open_clip", device="cpu", out=tmp_path / "open")[0]
    assert "init_logit_bias" not in json.loads((target / "open_clip_config.json").read_text())["model_cfg"]
    assert open_clip.create_model_from_pretrained(f"local-dir:{target}")[0].logit_bias is None
    assert read_regions(target).config["region_logit_bias"] == pytest.approx(float(opened(source).region_logit_bias()))
    assert export(source, to="transformers", device="cpu", out=tmp_path / "hf")[1].notes == []


def test_a_softmax_run_from_a_sigmoid_model_has_no_bias(tmp_path: Path) -> None:
    import open_clip

    first = export(saved(tmp_path / "first", loss="sigmoid"), to="open_clip", device="cpu", out=tmp_path / "open")[0]
    tower = {"kind": "open_clip", "source": str(first)}
    model = build_model(tiny.recipe().model_copy(update={"image_encoder": tower, "text_encoder": tower}))
    target = export(save_model(model, tmp_path / "model"), to="open_clip", device="cpu", out=tmp_path / "out")[0]
    assert open_clip.create_model_from_pretrained(f"local-dir:{target}")[0].logit_bias is None


def test_the_folder_of_a_source_that_is_named_by_dots(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(folder, tmp_path / "mine")
    (source / "deeper").mkdir()
    for place, name in ((source, "."), (source / "deeper", "..")):
        monkeypatch.chdir(place)
        assert export(Path(name), to="open_clip", device="cpu", dry_run=True)[0] == tmp_path / "mine-open_clip"


@pytest.mark.parametrize("projection", ["own", "new"])
@torch.no_grad()
def test_clip_towers_from_transformers_go_back(projection: str, tmp_path: Path) -> None:
    source = foreign.save_clip(tmp_path / "clip")
    tower = {"kind": "clip", "source": str(source), "projection": projection}
    settings = tiny.recipe(embed_dim=foreign.EMBED)
    model = build_model(settings.model_copy(update={"image_encoder": tower, "text_encoder": tower})).eval()
    saved_to = save_model(model, tmp_path / "model")
    target, result, _ = export(saved_to, to="transformers", device="cpu", out=tmp_path / "out")
    assert max(result.differences.values()) < 5e-6
    first, again = CLIPModel.from_pretrained(source), CLIPModel.from_pretrained(target)
    state = again.state_dict()
    assert set(state) == set(first.state_dict())
    for name, value in first.state_dict().items():
        trained_on = name == "logit_scale" or (projection == "new" and "projection" in name)
        assert torch.equal(state[name], value) or trained_on, name
    run_card(target, texts_RE=torch.ones(1, foreign.EMBED))
    larger = {**tower, "image_size": 2 * foreign.SIZE}
    model = build_model(settings.model_copy(update={"image_encoder": larger, "text_encoder": tower}))
    with raises_naming(UserError, "image_size", "64", "32"):
        export(save_model(model, tmp_path / "larger"), to="transformers", device="cpu")
    with raises_naming(UserError, "open_clip"):
        export(saved_to, to="open_clip", device="cpu")


@pytest.mark.parametrize("place", ["model", "open_clip", "transformers"])
def test_cards_state_what_was_measured(place: str, folder: Path, in_open_clip: Path, in_transformers: Path) -> None:
    card = (
        {"model": folder, "open_clip": in_open_clip, "transformers": in_transformers}[place] / "README.md"
    ).read_text()
    library = "foveate" if place == "model" else place
    for words in (
        f"library_name: {library}\n",
        "tags: [cloc, ",
        "| where is it: IoU | seen | cloc | 0.432 (0.400 to 0.500) | 18 |",
        "| where is it: IoU | seen | center | 0.200 | 18 |",
        "foveate evaluate MODEL --collection shapes --split test",
        "commit 0123456789ab",
        "Its license, as it states it: CC0-1.0.",
        "foveate pretrain tiny.yaml --collection 'my shapes'",
    ):
        assert words in card
    assert "Not evaluated" not in card
    if place == "model":
        assert run_card(folder)["words_1E"].shape == (1, 32)
    assert "\n\n\n" not in card


def test_cards_invent_nothing(tmp_path: Path) -> None:
    card = (save_model(build_model(tiny.recipe()), tmp_path / "model") / "README.md").read_text()
    assert "Not evaluated." in card
    assert "The training collection is not recorded in this folder." in card
    assert "%" not in card


def test_folders_of_another_kind_or_half_written(folder: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path, "config.json"):
        export(tmp_path, to="onnx")
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_bytes((folder / "config.json").read_bytes())
    with raises_naming(UserError, "model.safetensors"):
        export(half, to="open_clip")
    with raises_naming(UserError, "openclip", "open_clip"):
        export(folder, to="openclip")
    with raises_naming(UserError, "webdataset"):
        export(folder, to="webdataset")
    with raises_naming(UserError, "--split", "embeddings"):
        export(folder, to="open_clip", split="test")


def test_existing_files_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for out in (full, full / "mine.txt"):
        with raises_naming(UserError, out, "--out"):
            export(folder, to="open_clip", out=out)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    with raises_naming(UserError, "deeper"):
        export(folder, to="open_clip", out=full / "mine.txt" / "deeper", device="cpu")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export(folder, to="open_clip", out=empty, device="cpu")[0] == empty
    assert (empty / "open_clip_config.json").is_file()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_a_failed_export_leaves_nothing(
    problem: type[BaseException], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foveate.pretrain.exporters import open_clip as module

    def fails(*_: object) -> list[str]:
        raise problem(28, "No space left on device")

    monkeypatch.setattr(module.region_files, "write_regions", fails)
    expected = UserError if problem is OSError else problem
    with pytest.raises(expected):
        export(folder, to="open_clip", out=tmp_path / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_export_are_discarded_and_two_at_once_are_refused(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial" / "content"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"half")
    with staged_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole.bin").write_bytes(b"whole")
        with raises_naming(UserError, "export"), staged_folder(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.bin"]

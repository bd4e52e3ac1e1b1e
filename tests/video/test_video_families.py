"""Families with a grid of their own: SlowFast against their image path, their own video input against `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_models
import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from foveate.core.errors import UserError
from foveate.language.generate import PlacedPrompt
from foveate.video.families import GRIDS
from foveate.video.networks import open_network
from foveate.video.strategies import parse_how
from foveate.video.watching import ask_all, watch
from naming import raises_naming

WATCHING = ("glm4v", "internvl", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
VIDEO = {"smolvlm": "<|video_pad|>", "llava_onevision": "<|video_pad|>"}
QUESTION = "what is in the image"
FRAMES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for seed in range(4)
]


def template(family: str) -> str:
    image = foreign_models.MARKS.get(family, "<image>")
    video = {"internvl": "<|video_pad|>", "glm4v": "<|begin_of_video|><|video_pad|><|end_of_video|>"}.get(family)
    if family.startswith("qwen"):
        video = "<|vision_start|><|video_pad|><|vision_end|>"
    text = foreign_models.template(image)
    mark = video or VIDEO.get(family)
    if mark is None:
        return text
    return text.replace("{% else %}", "{% elif part['type'] == 'video' %}" + mark + " {% else %}", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose video processors are as tiny as they are."""
    root = tmp_path_factory.mktemp("families")
    return {family: save(family, root / family) for family in sorted({*GRIDS, *WATCHING})}


def save(family: str, folder: Path) -> Path:
    foreign_models.save(family, folder)
    if family == "paligemma":
        return folder
    processor: Any = AutoProcessor.from_pretrained(folder)
    processor.chat_template = template(family)
    sizes = {"shortest_edge": 256, "longest_edge": 4 * 48 * 48}
    small = {"height": 32, "width": 32}
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    videos: Any = {
        "glm4v": lambda: t.Glm4vVideoProcessor(**patches),
        "internvl": lambda: t.InternVLVideoProcessor(size=small),
        "llava_onevision": lambda: t.LlavaOnevisionVideoProcessor(size=small),
        "qwen2_5_vl": lambda: t.Qwen2VLVideoProcessor(**patches),
        "qwen2_vl": lambda: t.Qwen2VLVideoProcessor(**patches),
        "qwen3_vl": lambda: t.Qwen3VLVideoProcessor(**patches),
        "smolvlm": lambda: t.SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
    }.get(family)
    if videos is not None:
        processor.video_processor = videos()
    if family in VIDEO:
        processor.tokenizer = foreign_models.tokenizer(
            video_token=VIDEO[family], image_token="<image>", fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
        )  # fmt: skip
    if family == "glm4v":
        tiles = {f"tile_{column}": f"<row_1_col_{column}>" for column in range(1, 5)}
        processor.tokenizer = foreign_models.tokenizer(image_token="<image>", video_token="<|video_pad|>", **tiles)
    processor.save_pretrained(folder)
    if family == "glm4v":
        # Its processor knows a video by these names; tokens of tiles, which it has none of, are renamed.
        names = ["<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_image|>", "<|end_of_image|>"]
        for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
            content = path.read_text()
            for column, name in enumerate(names, 1):
                content = content.replace(f"<row_1_col_{column}>", name)
            path.write_text(content)
    return folder


def grid_options(family: str) -> dict[str, Any]:
    # Without a size these enlarge an image for tiles first and shrink it again.
    size = {"size": {"longest_edge": 32}} if family in ("idefics3", "smolvlm") else {}
    return {**GRIDS[family], **size}


@pytest.mark.parametrize("family", sorted(GRIDS))
def test_one_frame_without_pooling_is_an_image_of_the_family(folders: dict[str, Path], family: str) -> None:
    network = open_network(folders[family], device="cpu")
    viewing = watch(network, [FRAMES[0]], how=parse_how("concat", frames=1))
    model: Any = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folders[family])
    frame, options = network.render(FRAMES[0]), grid_options(family)
    inputs = processor.image_processor([frame], return_tensors="pt", **options)
    with torch.no_grad():
        names = ("pixel_values", "image_grid_thw")
        features = model.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})
    theirs = torch.cat(list(features.pooler_output)).reshape(-1, 32)
    assert viewing.layout.count_tokens() == {"frames": len(theirs)}
    torch.testing.assert_close(viewing.video_LD[:, :32], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(GRIDS))
def test_one_frame_is_answered_as_the_image_is(folders: dict[str, Path], family: str) -> None:
    """The whole prompt, masks and positions: greedy tokens are those of `generate` of the class itself."""
    network = open_network(folders[family], device="cpu")
    model: Any = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folders[family])
    frame = network.render(FRAMES[0])
    if family == "paligemma":
        text = f"<image>{QUESTION}"
    else:
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": parts}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    options = grid_options(family)
    inputs = processor(images=[frame], text=text, return_tensors="pt", **options)
    inputs.pop("labels", None)
    theirs = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    viewing = watch(network, [FRAMES[0]], how=parse_how("concat", frames=1), prompt="plain")
    for _ in range(2):  # the second time behind what was read
        ours = viewing.ask(QUESTION, max_tokens=6)
        assert list(ours.ids) == [id for id in theirs if id != 1]


@pytest.mark.parametrize("family", sorted(GRIDS))
def test_pooled_frames_are_answered_alike_alone_and_together(folders: dict[str, Path], family: str) -> None:
    network = open_network(folders[family], device="cpu")
    how = parse_how("slowfast", slow=2, slow_pool="2x2", fast="1x1", frames=4)
    viewing = watch(network, FRAMES, how=how, prompt="plain")
    alone = viewing.ask(QUESTION, max_tokens=4)
    together = ask_all([(viewing, QUESTION, ()), (viewing, "where is the red disc", ())], max_tokens=4)
    assert together[0].ids == alone.ids
    assert viewing.choose(QUESTION, ["red", "blue"]).letter in "AB" if "A" in network.tokenizer.special else True


def test_pooled_grids_have_positions_of_their_own(folders: dict[str, Path]) -> None:
    how = parse_how("slowfast", slow=2, slow_pool="2x2", fast="1x2", frames=4)
    viewings = {family: watch(folders[family], FRAMES, how=how, device="cpu") for family in ("qwen2_vl", "qwen3_vl")}
    for family, viewing in viewings.items():
        placed = viewing.splice(viewing.encode_question(QUESTION, (), 1))
        assert isinstance(placed, PlacedPrompt)
        start = len(viewing.encode_question(QUESTION, (), 1).before)
        positions = placed.positions_L[:, start : start + len(viewing.video_LD)] - start
        side = viewing.network.grid[0] // 2
        assert positions[:, 0].tolist() == [0, 0, 0]
        # Within the first slow frame rows and columns count up; time stands still.
        assert positions[:, side * side - 1].tolist() == [0, side - 1, side - 1]
        second = positions[:, side * side].tolist()
        assert second == ([1, 0, 0] if family == "qwen2_vl" else [side] * 3)
        # What follows a video stands behind all of it.
        after = placed.positions_L[:, start + len(viewing.video_LD)]
        assert after.tolist() == [start + int(positions.max()) + 1] * 3


@pytest.mark.parametrize("family", WATCHING)
def test_the_own_video_input_is_that_of_transformers(folders: dict[str, Path], family: str) -> None:
    network = open_network(folders[family], device="cpu")
    viewing = watch(network, FRAMES, how="native", prompt="plain")
    ours = viewing.ask(QUESTION, max_tokens=6)
    model: Any = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folders[family])
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    text = t.ProcessorMixin.apply_chat_template(processor, messages, add_generation_prompt=True, tokenize=False)
    metadata = VideoMetadata(
        total_num_frames=4000, fps=1000, duration=4.0, frames_indices=[0, 1000, 2000, 3000], width=32, height=32
    )
    inputs = processor(
        videos=[np.stack([np.asarray(FRAMES[index]) for index in viewing.clip.indices])], text=text,
        return_tensors="pt", do_sample_frames=False,
        video_metadata=[VideoMetadata(**{**vars(metadata), "frames_indices": [1000 * i for i in viewing.clip.indices],
                                         "duration": viewing.clip.times[-1] - viewing.clip.times[0] + step(viewing),
                                         "total_num_frames": total(viewing)})],
    )  # fmt: skip
    theirs = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert ours.num_prompt_tokens == inputs["input_ids"].shape[1]
    assert list(ours.ids) == [id for id in theirs if id != 1]
    assert viewing.record["tokens"] == {"native": len(viewing.video_LD)}
    assert viewing.ask(QUESTION, max_tokens=6).ids == ours.ids


def step(viewing: Any) -> float:
    times = viewing.clip.times
    return (times[-1] - times[0]) / (len(times) - 1)


def total(viewing: Any) -> int:
    return round((viewing.clip.times[-1] - viewing.clip.times[0] + step(viewing)) * 1000)


def test_families_without_a_video_input_say_so(folders: dict[str, Path]) -> None:
    for family in ("gemma3", "paligemma", "idefics3"):
        with raises_naming(UserError, "native", "no video input"):
            watch(folders[family], FRAMES, how="native", device="cpu")
    with raises_naming(UserError, "fit", "frames"):
        watch(folders["qwen2_vl"], FRAMES, how="native", fit=True, device="cpu")

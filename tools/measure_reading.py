"""Train a small character head on frozen feature maps of Lite0, and measure how many words it reads in scenes.

python tools/measure_reading.py --seconds 1200 --run reading
python tools/measure_reading.py --seconds 150 --letters-first --run letters-first

Training pastes words on scenes; in the test, words, scenes and their grounds are held out. The head finds where letters
are on the map of stride 8, and reads the columns of that box with CTC (Graves et al. 2006). Stopped: run it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save
from scipy.ndimage import label
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.vision.lite0 import Lite0, load_lite0
from foveate.vision.minilm import package_folder
from foveate_labs.worlds.scenes.scene import draw_scene
from foveate_labs.worlds.sheets import find_font_size, load_font

SIZE, CELLS, BATCH, RATE, WARMUP = 224, 28, 16, 2e-3, 200
FONTS = ("sans", "serif", "mono", "pillow")
LENGTHS, HEIGHTS, TEST_HEIGHTS = (3, 7), (16, 44), (20, 40)  # of words in letters, of capitals in pixels
# (share of the time up to which it holds, lengths, heights, whether letters are drawn at random)
CURRICULUM = (
    (0.12, (1, 1), (64, 110), True),
    (0.25, (1, 2), (40, 90), True),
    (0.45, (2, 4), (32, 64), True),
    (0.65, (3, 6), (24, 44), False),
    (1.01, (3, 7), (18, 40), False),
)
_STRIDE_8_BLOCK, _STRIDE_16_BLOCK = 4, 10
Pixels = NDArray[np.uint8]
Edges = tuple[float, float, float, float]


class Written(NamedTuple):
    """A word of a scene; `box` in pixels around its letters."""

    text: str
    box: Edges


def load_words() -> tuple[list[str], list[str]]:
    """Return the words of training and those of the test, a tenth: whole words of MiniLM's vocabulary."""
    vocabulary = (package_folder() / "vocab.txt").read_text(encoding="utf-8").split()
    letters = set(string.ascii_lowercase)
    words = sorted({word for word in vocabulary if LENGTHS[0] <= len(word) <= LENGTHS[1] and set(word) <= letters})
    held_out = {word for word in words if int(hashlib.sha256(f"read{word}".encode()).hexdigest(), 16) % 10 == 0}
    return [word for word in words if word not in held_out], sorted(held_out)


def draw_backgrounds(split: str, count: int, seed: int) -> Pixels:
    """Draw scenes [N, 224, 224, 3] without a word."""
    scenes: list[Pixels] = []
    index = 0
    while len(scenes) < count:
        scene = draw_scene(seed=seed, split=split, index=index)
        index += 1
        if all(placed.kind != "text" for placed in scene.objects):
            scenes.append(np.asarray(scene.image.convert("RGB"), np.uint8))
    return np.stack(scenes)


def paste_word(rng: np.random.Generator, canvas: Pixels, word: str, height: int, taken: list[Edges]) -> Written | None:
    """Write a word where nothing is `taken`, on the scene or on a plate; None without room or contrast."""
    font_name = FONTS[rng.integers(len(FONTS))]
    font = load_font(font_name, find_font_size(font_name, height), bold=bool(rng.random() < 0.4))
    case = rng.random()
    text = word if case < 0.5 else word.capitalize() if case < 0.7 else word.upper()
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    pad = int(height * rng.uniform(0.1, 0.5))
    image = Image.new("RGBA", (right - left + 2 * pad, bottom - top + 2 * pad))
    plate = rng.random() < 0.5
    if max(image.size) > SIZE - 4:
        return None
    for _ in range(12):
        x, y = (int(rng.integers(0, SIZE - side + 1)) for side in image.size)
        box = (x, y, x + image.width, y + image.height)
        if all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken):
            break
    else:
        return None
    patch = canvas[y : box[3], x : box[2]].reshape(-1, 3).astype(float)
    ground = patch.mean()
    if plate:
        paper = rng.integers(0, 256, 3)
        ImageDraw.Draw(image).rectangle((0, 0, *image.size), fill=(*map(int, paper), 255))
        ground = paper.mean()
    for _ in range(50):
        ink = rng.integers(0, 256, 3)
        if abs(ink.mean() - ground) > 80:
            break
    else:
        ink = np.full(3, 255 if ground < 128 else 0)
    # Without a plate, letters on a ground of many shades would not stand out for a person either.
    if not plate and patch.mean(1).std() > 55:
        return None
    ImageDraw.Draw(image).text((pad - left, pad - top), text, font=font, fill=(*map(int, ink), 255))
    turned = np.asarray(image.rotate(float(rng.normal(0, 2.5)), resample=Image.Resampling.BICUBIC), np.float32)
    alpha = turned[..., 3:] / 255
    region = canvas[y : box[3], x : box[2]]
    region[:] = (region * (1 - alpha) + turned[..., :3] * alpha).round().clip(0, 255)
    taken.append(box)
    return Written(word, (x + pad, y + pad, box[2] - pad, box[3] - pad))


@torch.no_grad()
def compute_maps(network: Lite0, pixels_BHW3: Pixels) -> Tensor:
    """Return [B, 152, 28, 28]: the map of stride 8, that of stride 16 enlarged, each with its channels normalized."""
    parts = []
    # Small blocks stay in the cache of a core, as in `Lite0Encoder`.
    for block in torch.from_numpy(pixels_BHW3).split(8):
        x = (block.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        x = network.stem(x, relu6=True)
        maps = []
        for index, layer in enumerate(network.blocks[: _STRIDE_16_BLOCK + 1]):
            x = layer(x)
            if index in (_STRIDE_8_BLOCK, _STRIDE_16_BLOCK):
                channels_last = x.float().permute(0, 2, 3, 1)
                maps.append(F.layer_norm(channels_last, channels_last.shape[-1:]).permute(0, 3, 1, 2))
        parts.append(torch.cat([maps[0], F.interpolate(maps[1], size=(CELLS, CELLS), mode="bilinear")], 1))
    return torch.cat(parts)


class _Residual(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(8, width), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(F.relu(self.norm(x)))


class CharacterHead(nn.Module):
    """Where letters are, a logit for each cell; and the letters in a box, by CTC over its columns."""

    rows, columns = 4, 32

    def __init__(self, channels: int = 152, width: int = 96, hidden: int = 224) -> None:
        super().__init__()
        convolutions = [_Residual(nn.Conv2d(width, width, 3, padding=1), width) for _ in range(2)]
        self.trunk = nn.Sequential(nn.Conv2d(channels, width, 1), *convolutions)
        self.mask = nn.Conv2d(width, 1, 1)
        columns = [_Residual(nn.Conv1d(hidden, hidden, 3, padding=1), hidden) for _ in range(3)]
        self.reader = nn.Sequential(
            nn.Conv1d(width * self.rows, hidden, 3, padding=1), *columns, nn.ReLU(), nn.Conv1d(hidden, 27, 1)
        )

    def read(self, grid_BDHW: Tensor, index_N: Tensor, boxes_N4: Tensor) -> Tensor:
        """Return logits [N, 32, 27] of the columns of boxes in [0, 1]; class 0 is CTC's blank."""
        y_R, x_C = ((torch.arange(count) + 0.5) / count for count in (self.rows, self.columns))
        x1, y1, x2, y2 = (edge[:, None] for edge in boxes_N4.unbind(1))
        x_NC, y_NR = x1 + x_C * (x2 - x1), y1 + y_R * (y2 - y1)
        shape = (len(boxes_N4), self.rows, self.columns)
        points = torch.stack([x_NC[:, None].expand(shape), y_NR[..., None].expand(shape)], -1) * 2 - 1
        sampled_NDRC = F.grid_sample(grid_BDHW[index_N], points, align_corners=False)
        return self.reader(sampled_NDRC.flatten(1, 2)).transpose(1, 2)


def decode(logits_NC27: Tensor) -> list[str]:
    """Read the most probable class of each column: repeated ones are one letter, class 0 is none."""
    texts: list[str] = []
    for classes in logits_NC27.argmax(-1).tolist():
        new = [now for before, now in zip([0, *classes], classes, strict=False) if now not in (0, before)]
        texts.append("".join(string.ascii_lowercase[number - 1] for number in new))
    return texts


def find_box(mask_HW: NDArray[np.float32]) -> Edges:
    """Return the box in [0, 1] around the connected cells with the largest sum of probability."""
    cells = mask_HW > 0.5 if (mask_HW > 0.5).any() else mask_HW >= mask_HW.max()
    labels, count = label(cells, structure=np.ones((3, 3)))
    best = max(range(1, count + 1), key=lambda number: mask_HW[labels == number].sum())
    rows, columns = np.nonzero(labels == best)
    height, width = mask_HW.shape
    return columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height


def cover_cells(boxes: Sequence[Edges]) -> NDArray[np.float32]:
    """Return the share [28, 28] of each cell that lies in a box."""
    edges, side = np.arange(CELLS + 1) * SIZE / CELLS, SIZE / CELLS
    covered = np.zeros((CELLS, CELLS), np.float32)
    for x1, y1, x2, y2 in boxes:
        across, down = (
            (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) / side
            for low, high in ((x1, x2), (y1, y2))
        )
        covered = np.maximum(covered, np.outer(down, across))
    return covered


def _draw_height(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return round(math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1]))))


def draw_test(count: int, seed: int = 7) -> list[tuple[Pixels, Written]]:
    """Draw scenes with one held-out word each, on held-out grounds."""
    words, backgrounds = load_words()[1], draw_backgrounds("test", 300, 3)
    items: list[tuple[Pixels, Written]] = []
    index = 0
    while len(items) < count:
        rng = np.random.default_rng([seed, index, TEST_HEIGHTS[0]])
        index += 1
        canvas = backgrounds[rng.integers(len(backgrounds))].copy()
        word = words[rng.integers(len(words))]
        written = paste_word(rng, canvas, word, _draw_height(rng, TEST_HEIGHTS), [])
        if written:
            items.append((canvas, written))
    return items


@torch.no_grad()
def measure(network: Lite0, head: CharacterHead, items: Sequence[tuple[Pixels, Written]]) -> dict[str, float]:
    """Return the share of words read exactly, in any case; the control compares with the word of another scene."""
    texts: list[str] = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        grid = head.trunk(compute_maps(network, np.stack([pixels for pixels, _ in part])))
        boxes = [find_box(mask) for mask in head.mask(grid)[:, 0].sigmoid().numpy()]
        texts += decode(head.read(grid, torch.arange(len(part)), torch.tensor(boxes, dtype=torch.float32)))
    truth = [written.text for _, written in items]
    right, other = (
        float(np.mean([text == word for text, word in zip(texts, words, strict=True)]))
        for words in (truth, [*truth[1:], truth[0]])
    )
    return {"exact": right, "another image": other, "n": len(items)}


class _Batch(NamedTuple):
    pixels: Pixels
    masks: NDArray[np.float32]
    boxes: list[list[float]]
    targets: list[list[int]]
    index: list[int]


def draw_batch(rng: np.random.Generator, backgrounds: Pixels, words: Sequence[str], share: float | None) -> _Batch:
    """Draw scenes with up to three words each.

    Args:
        share: of the time that has passed, which sets the level of the curriculum; None draws all sizes always.
    """
    level = (1.0, LENGTHS, HEIGHTS, False) if share is None else next(row for row in CURRICULUM if share < row[0])
    _, (shortest, longest), heights, at_random = level
    batch = _Batch(np.empty((BATCH, SIZE, SIZE, 3), np.uint8), np.empty((BATCH, CELLS, CELLS), np.float32), [], [], [])
    for number in range(BATCH):
        canvas = backgrounds[rng.integers(len(backgrounds))].copy()
        if rng.random() < 0.5:
            canvas = canvas[:, ::-1].copy()
        taken: list[Edges] = []
        written = []
        for _ in range(int(rng.integers(1, 4))):
            # Letters at random too, so that the head reads letters and does not choose among known words.
            if at_random or rng.random() < 0.2:
                drawn = rng.integers(26, size=int(rng.integers(shortest, longest + 1)))
                word = "".join(string.ascii_lowercase[letter] for letter in drawn)
            else:
                word = words[int(rng.integers(len(words)))]
                while not shortest <= len(word) <= longest:
                    word = words[int(rng.integers(len(words)))]
            pasted = paste_word(rng, canvas, word, _draw_height(rng, heights), taken)
            if pasted:
                written.append(pasted)
        batch.pixels[number], batch.masks[number] = canvas, cover_cells([word.box for word in written])
        for text, (x1, y1, x2, y2) in written:
            # Boxes that are a little off, as found ones are.
            shift, grow = rng.uniform(-1, 1, 4) * max(4, 0.12 * (y2 - y1)), rng.uniform(0, 6)
            moved = np.array([x1, y1, x2, y2]) + shift + grow * np.array([-1, -1, 1, 1])
            batch.boxes.append((moved / SIZE).tolist())
            batch.targets.append([string.ascii_lowercase.index(letter) + 1 for letter in text])
            batch.index.append(number)
    return batch


def list_tensors(head: CharacterHead, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return weights as head.NAME, and moments as NUMBER.NAME in the order of the parameters."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"{number}.{name}": tensor for number, of_one in moments.items() for name, tensor in of_one.items()}
    return tensors | {f"head.{name}": tensor for name, tensor in head.state_dict().items()}


def resume(
    path: Path, head: CharacterHead, optimizer: torch.optim.Optimizer, options: list[int | bool]
) -> tuple[float, int]:
    """Load a checkpoint; return the seconds and steps behind it."""
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    if state["options"] != options:
        raise UserError(f"{path}: was trained with another --seed or --letters-first; expected another --run")
    head.load_state_dict({name: tensors.pop(f"head.{name}") for name in head.state_dict()})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return state["used"], state["step"]


def train(run: Path, *, seconds: float, seed: int, letters_first: bool) -> Iterator[tuple[Lite0, CharacterHead, int]]:
    """Train for processor seconds of one thread; yield the head after each 150 of them and at the end."""
    torch.manual_seed(seed)
    network, head = load_lite0().to(torch.bfloat16).fuse(), CharacterHead()
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.01)
    words, backgrounds = load_words()[0], draw_backgrounds("train", 2000, 1)
    path, used, step = run / "checkpoint.safetensors", 0.0, 0
    if path.is_file():
        used, step = resume(path, head, optimizer, [seed, letters_first])
    start = saved = time.process_time() - used
    while used < seconds:
        rng = np.random.default_rng([seed, step])
        batch = draw_batch(rng, backgrounds, words, used / seconds if letters_first else None)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
        grid = head.trunk(compute_maps(network, batch.pixels))
        loss = F.binary_cross_entropy_with_logits(head.mask(grid)[:, 0], torch.from_numpy(batch.masks))
        if batch.index:
            logits = head.read(grid, torch.tensor(batch.index), torch.tensor(batch.boxes, dtype=torch.float32))
            lengths = torch.tensor([len(target) for target in batch.targets])
            targets = torch.tensor([letter for target in batch.targets for letter in target])
            columns = torch.full((len(lengths),), CharacterHead.columns)
            loss = loss + F.ctc_loss(
                logits.log_softmax(-1).transpose(0, 1), targets, columns, lengths, zero_infinity=True
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 2.0)
        optimizer.step()
        step, used = step + 1, time.process_time() - start
        if used >= seconds or time.process_time() - saved >= 150:
            state = {"used": used, "step": step, "options": [seed, letters_first]}
            write_bytes_atomically(path, save(list_tensors(head, optimizer), metadata={"state": json.dumps(state)}))
            yield network, head, step
            # What was spent between, on measuring, is not training.
            start, saved = time.process_time() - used, time.process_time()


@click.command()
@click.option("--seconds", required=True, type=float, help="Processor seconds of training, on one thread.")
@click.option("--seed", default=0, show_default=True)
@click.option("--letters-first", is_flag=True, help="Large letters first, then smaller ones and words.")
@click.option("--test", "num_test", default=240, show_default=True, help="Words of the test.")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder for checkpoint and numbers.")
def main(seconds: float, seed: int, letters_first: bool, num_test: int, run: Path) -> None:
    """Train, and print what is read after each 150 seconds."""
    torch.set_num_threads(1)
    run.mkdir(parents=True, exist_ok=True)
    items = draw_test(num_test)
    for network, head, step in train(run, seconds=seconds, seed=seed, letters_first=letters_first):
        print(json.dumps({"step": step, **measure(network, head, items)}), flush=True)


if __name__ == "__main__":
    main()

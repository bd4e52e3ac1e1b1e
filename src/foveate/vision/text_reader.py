"""Read words in images: a small character head on the frozen maps of Lite0 finds where letters are, and reads them.

The maps of strides 8 and 16 say of each cell of 8 x 8 pixels whether letters are in it. Connected cells are a word, and
its letters are read column by column with CTC (Graves et al. 2006) from the same maps and, since a letter of 12 pixels
is hardly wider than a cell, the map of stride 4. The head knows the 26 letters, in either case; digits and signs it
does not.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save
from scipy.ndimage import label
from torch import Tensor, nn

from foveate.core.devices import precision_of
from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.core.model_folder import check_header, read_tensors
from foveate.core.recipes import Settings
from foveate.records.boxes import Box, PixelBox
from foveate.records.geometry import Placement
from foveate.vision.lite0 import WEIGHTS_SHA256, Lite0, load_lite0
from foveate.vision.preprocess import Preprocess, render_file

# The label of regions that are written words, whose phrase is the word.
WRITTEN = "written word"
SIZE, CELL = 224, 8  # of the input and of a cell of the map that finds words, in pixels
CELLS = SIZE // CELL
PREPROCESS = Preprocess(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)  # as Lite0 was trained
LETTERS = string.ascii_lowercase
ROWS, COLUMNS = 4, 32  # points of a word's box that its letters are read from
# Behind these blocks of Lite0 a map has stride 4, 8 and 16, and so many channels.
_BLOCKS = {2: 24, 4: 40, 10: 112}
_FINE, _COARSE = 24, 40 + 112
_MIN_MASK = 0.5
# Fewer letters are no word: nearly all that is read where nothing is written is an "i" or an "l".
MIN_LETTERS = 2
# Most words of an image; a page of text is not what the head is for.
MAX_WORDS = 16
_BATCH = 8  # images that stay in the cache of a core


class ReadWord(NamedTuple):
    """A word that was read.

    Attributes:
        text: in small letters. box: around it, in pixels of the image. score: probability of its letters, in [0, 1].
    """

    text: str
    box: PixelBox
    score: float


class TextMaps(NamedTuple):
    """Maps of frozen Lite0, channels scaled to mean 0 and variance 1 at each location.

    Attributes:
        coarse_BCHW: [B, 152, 28, 28], of stride 8, and of stride 16 enlarged.
        fine_BCHW: [B, 24, 56, 56], of stride 4.
    """

    coarse_BCHW: Tensor
    fine_BCHW: Tensor


def load_network(device: torch.device) -> Lite0:
    """Load the frozen network in the precision that the device is fastest in, as `Lite0Encoder` has it."""
    network = load_lite0().to(device=device, dtype=precision_of("auto", device))
    return network.fuse() if device.type == "cpu" else network


@torch.no_grad()
def compute_maps(network: Lite0, pixels_B3HW: Tensor) -> TextMaps:
    """Compute the maps of uint8 pixels [B, 3, 224, 224]."""
    dtype = next(network.parameters()).dtype
    coarse, fine = [], []
    # Autocast has another precision than the one that the network was loaded in.
    with torch.autocast(pixels_B3HW.device.type, enabled=False):
        for block in pixels_B3HW.split(_BATCH if pixels_B3HW.device.type == "cpu" else 256):
            x = PREPROCESS.normalize(block).to(dtype=dtype, memory_format=torch.channels_last)
            x = network.stem(x, relu6=True)
            maps = []
            for index, layer in enumerate(network.blocks[: max(_BLOCKS) + 1]):
                x = layer(x)
                if index in _BLOCKS:
                    x_BHWC = x.float().permute(0, 2, 3, 1)
                    maps.append(F.layer_norm(x_BHWC, x_BHWC.shape[-1:]).permute(0, 3, 1, 2))
            stride_4, stride_8, stride_16 = maps
            enlarged = F.interpolate(stride_16, size=stride_8.shape[-2:], mode="bilinear")
            coarse.append(torch.cat([stride_8, enlarged], dim=1))
            fine.append(stride_4)
    return TextMaps(torch.cat(coarse), torch.cat(fine))


class _Residual(nn.Module):
    """x + layer(relu(norm(x)))."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(8, width), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(F.relu(self.norm(x)))


class CharacterHead(nn.Module):
    """A logit of letters for each cell, and the letters in a box.

    Args:
        width: channels of the map that finds words. hidden: of the layers that read; both multiples of 8.
    """

    def __init__(self, *, width: int = 96, hidden: int = 160) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        convolutions = [_Residual(nn.Conv2d(width, width, 3, padding=1), width) for _ in range(2)]
        self.trunk = nn.Sequential(nn.Conv2d(_COARSE, width, 1), *convolutions)
        self.mask = nn.Conv2d(width, 1, 1)
        columns = [_Residual(nn.Conv1d(hidden, hidden, 3, padding=1), hidden) for _ in range(3)]
        first = nn.Conv1d((width + _FINE) * ROWS, hidden, 3, padding=1)
        self.reader = nn.Sequential(first, *columns, nn.ReLU(), nn.Conv1d(hidden, 1 + len(LETTERS), 1))

    def forward(self, maps: TextMaps) -> tuple[Tensor, Tensor]:
        """Return the map [B, width, 28, 28] that words are read from, and logits of letters [B, 28, 28]."""
        grid_BDHW = self.trunk(maps.coarse_BCHW)
        return grid_BDHW, self.mask(grid_BDHW)[:, 0]

    def read(self, grid_BDHW: Tensor, maps: TextMaps, boxes_N4: Tensor, image_N: Tensor) -> Tensor:
        """Return logits [N, 32, 27] of the columns of boxes in [0, 1]; class 0 is CTC's blank."""
        y_R, x_C = ((torch.arange(count, device=boxes_N4.device) + 0.5) / count for count in (ROWS, COLUMNS))
        x1, y1, x2, y2 = (edge[:, None] for edge in boxes_N4.unbind(1))
        x_NC, y_NR = x1 + x_C * (x2 - x1), y1 + y_R * (y2 - y1)
        shape = (len(boxes_N4), ROWS, COLUMNS)
        points_NRC2 = torch.stack([x_NC[:, None].expand(shape), y_NR[..., None].expand(shape)], -1) * 2 - 1
        sampled = [
            F.grid_sample(x_BDHW.float()[image_N], points_NRC2, align_corners=False)
            for x_BDHW in (grid_BDHW, maps.fine_BCHW)
        ]
        return self.reader(torch.cat(sampled, dim=1).flatten(1, 2)).transpose(1, 2)


def decode_letters(logits_NCL: Tensor) -> list[tuple[str, float]]:
    """Return the letters of the likeliest class of each column, repeated ones once, and the probability of them all."""
    log_NC, class_NC = logits_NCL.float().log_softmax(dim=-1).max(dim=-1)
    rows = zip(class_NC.tolist(), log_NC.sum(dim=1).exp().tolist(), strict=True)
    texts: list[tuple[str, float]] = []
    for classes, probability in rows:
        new = [now for before, now in zip([0, *classes], classes, strict=False) if now not in (0, before)]
        texts.append(("".join(LETTERS[number - 1] for number in new), probability))
    return texts


def find_words(mask_HW: NDArray[np.float32], *, max_words: int = MAX_WORDS) -> list[Box]:
    """Return boxes in [0, 1] around connected cells that letters are in, those with the largest sum first.

    Args:
        mask_HW: probability of each cell, which was trained as the share of it that a word's box covers.
    """
    labels_HW, count = label(mask_HW > _MIN_MASK, structure=np.ones((3, 3)))
    sums = [float(mask_HW[labels_HW == number].sum()) for number in range(1, count + 1)]
    order = sorted(range(count), key=lambda index: -sums[index])[:max_words]
    height, width = mask_HW.shape
    boxes = []
    for index in order:
        rows, columns = np.nonzero(labels_HW == index + 1)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        y1, y2 = _find_edges(mask_HW[:, left : right + 1].max(axis=1), top, bottom)
        x1, x2 = _find_edges(mask_HW[top : bottom + 1].max(axis=0), left, right)
        boxes.append(Box(x1 / width, y1 / height, x2 / width, y2 / height))
    return boxes


def _find_edges(share_L: NDArray[np.float32], first: int, last: int) -> tuple[float, float]:
    """Return where a word begins and ends, in cells: those at its ends are covered in part."""
    padded = np.pad(share_L, 1)
    # A neighbor counts if it is covered less than half; more, and it is of another word.
    before, after = (float(share) if share <= _MIN_MASK else 0.0 for share in (padded[first], padded[last + 2]))
    return max(first + 1 - float(share_L[first]) - before, 0.0), min(last + float(share_L[last]) + after, len(share_L))


class TextReader:
    """A character head with the frozen network in front of it.

    Args:
        head: trained. min_score: words of a lower score count as not read.
        device: of both.
        network: as of `load_network`; by default it is loaded when the first image comes.
    """

    def __init__(
        self,
        head: CharacterHead,
        *,
        min_score: float,
        device: torch.device | None = None,
        network: Lite0 | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.head, self.min_score = head.to(self.device), min_score
        self._network = network

    def read(self, image: bytes) -> list[ReadWord]:
        """Read the words of an image file, in lines from the top and from left to right.

        Raises:
            BadImage: the image cannot be read.
        """
        pixels, placement = render_file(image, PREPROCESS)
        (words,) = self.read_pixels(pixels[None], [placement])
        return words

    @torch.inference_mode()
    def read_pixels(self, pixels_B3HW: Tensor, placements: Sequence[Placement]) -> list[list[ReadWord]]:
        """Read the words of images that were rendered for `PREPROCESS`."""
        if self._network is None:
            # At the first question about words: most questions are about other things.
            self._network = load_network(self.device)
        maps = compute_maps(self._network, pixels_B3HW.to(self.device))
        grid_BDHW, mask_BHW = self.head(maps)
        found = [find_words(mask) for mask in mask_BHW.sigmoid().float().cpu().numpy()]
        boxes = [box for of_image in found for box in of_image]
        image_N = [index for index, of_image in enumerate(found) for _ in of_image]
        words: list[list[ReadWord]] = [[] for _ in found]
        if not boxes:
            return words
        boxes_N4 = torch.tensor(np.array([box.to_array() for box in boxes]), dtype=torch.float32, device=self.device)
        logits = self.head.read(grid_BDHW, maps, boxes_N4, torch.tensor(image_N, device=self.device))
        for index, box, (text, score) in zip(image_N, boxes, decode_letters(logits), strict=True):
            if len(text) >= MIN_LETTERS and score >= self.min_score:
                words[index].append(ReadWord(text, _to_pixels(box, placements[index]), score))
        return [sort_words(of_image) for of_image in words]


def _to_pixels(box: Box, placement: Placement) -> PixelBox:
    corners = placement.to_original(box.to_array()[None])[0]
    return Box.from_array(corners, clipped=True).to_pixels(placement.width, placement.height)


def sort_words(words: Sequence[ReadWord]) -> list[ReadWord]:
    """Sort words into lines from the top, and from left to right in a line: two whose centers lie in each other."""
    rest, lines = sorted(words, key=lambda word: word.box.y1 + word.box.y2), []
    while rest:
        first = rest[0].box
        line = [word for word in rest if first.y1 <= (word.box.y1 + word.box.y2) / 2 <= first.y2]
        rest = [word for word in rest if word not in line]
        lines += sorted(line, key=lambda word: word.box.x1)
    return lines


class ReaderSettings(Settings):
    """What a model folder says of its character head, whose weights are in `READER`."""

    width: int = Field(default=96, ge=8, le=1024, multiple_of=8, description="channels of the map that finds words")
    hidden: int = Field(default=160, ge=8, le=1024, multiple_of=8, description="channels of the layers that read")
    min_score: float = Field(default=0.0, ge=0, le=1, description="words of a lower score count as not read")
    network_sha256: str = Field(default=WEIGHTS_SHA256, description="of the frozen network whose maps it reads")


READER = "reader.safetensors"


def save_head(path: Path, head: CharacterHead) -> None:
    """Write the weights of a head, in float16: they are read as well, in half the bytes."""
    tensors = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in head.state_dict().items()}
    write_bytes_atomically(path, save(tensors, metadata={"format": "pt"}))


def load_reader(path: Path, settings: ReaderSettings, *, device: torch.device | None = None) -> TextReader:
    """Load the head of a model folder.

    Raises:
        UserError: the file is missing, damaged, of other sizes, or was trained on the maps of another network.
    """
    if settings.network_sha256 != WEIGHTS_SHA256:
        raise UserError(
            f"{path}: reads maps of another network (got sha256 {settings.network_sha256}); expected {WEIGHTS_SHA256}"
        )

    def build() -> CharacterHead:
        return CharacterHead(width=settings.width, hidden=settings.hidden)

    check_header(path, {}, build, where=path)
    head, tensors = build(), read_tensors(path)
    head.load_state_dict({name: value.float() for name, value in tensors.items()})
    return TextReader(head.eval().requires_grad_(False), min_score=settings.min_score, device=device)

"""Prior by a small network of place and day of the year, trained on presences against random places (geo_prior).

Sine and cosine of longitude, latitude and day -> Linear(6, 256) -> ReLU -> four residual blocks -> Linear without bias
-> sigmoid for each class. Loss: -log(1 - p) of all classes at the place of an image, but C times -log(p) for its class,
plus -log(1 - p) at a random place of the sphere on a random day. Adam, 5e-4 x 0.98 an epoch, 30 epochs, batch 1024, at
most 100 images a class and epoch.

Two differences: there is no photographer, and the factor is p over its mean on training images, scaled so that factors
average to 1 over them, where the paper multiplies by p. Latitude runs once around the circle from pole to pole, as
there.

Source: Mac Aodha, Cole, Perona, "Presence-Only Geographical Priors for Fine-Grained Image Classification" (ICCV 2019),
equations 3 to 5; github.com/macaodha/geo_prior, read, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, check_tensors
from foveate.core.recipes import Settings
from foveate.species.priors import (
    SelectedPrior,
    check_parts,
    normalize_ratios,
    read_prior_config,
    read_prior_tensors,
    select_animals,
    write_prior,
)
from foveate.species.rows import Floats
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

_DAYS = 366
# Added to probabilities before their logarithm, as geo_prior does: one that is exactly 0 would make the loss infinite.
_FLOOR = 1e-5
_NUM_BLOCKS = 4
# Days over which a factor is averaged where the day is unknown.
_DATES = 12
_NOTE = (
    "It holds no coordinates, but a network that was trained on places of cameras: where its values peak says roughly "
    "where they stood. Do not publish this folder if that is too exact."
)


class LearnedSettings(Settings):
    """Options of the network and its training."""

    width: int = Field(256, ge=1, description="width of the network")
    epochs: int = Field(30, ge=1, description="passes over the images")
    batch_size: int = Field(1024, ge=1, description="images a step")
    learning_rate: float = Field(5e-4, gt=0, description="of Adam in the first epoch")
    decay: float = Field(0.98, gt=0, le=1, description="factor of the learning rate an epoch")
    max_images: int = Field(100, ge=1, description="images of a class an epoch, drawn anew each")
    seed: int = Field(0, ge=0, description="of weights, order and random places")


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.second(self.dropout(torch.relu(self.first(x)))))


class PresenceNetwork(nn.Module):
    """Presence of classes from six features of place and day."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.start = nn.Linear(6, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(_NUM_BLOCKS)))
        self.classes = nn.Linear(width, num_classes, bias=False)

    def forward(self, features_B6: Tensor) -> Tensor:
        """Return probabilities [B, L]."""
        return torch.sigmoid(self.classes(self.blocks(torch.relu(self.start(features_B6)))))


def encode_conditions(places_B2: Tensor, days_B: Tensor) -> Tensor:
    """Return sine and cosine of longitude, latitude and day [B, 6].

    Args:
        places_B2: degrees (latitude, longitude).
        days_B: day of the year from 0.
    """
    scaled = torch.stack([places_B2[:, 1] / 180, places_B2[:, 0] / 90], dim=1) * torch.pi
    date = (2 * days_B / _DAYS - 1)[:, None] * torch.pi
    return torch.cat([torch.sin(scaled), torch.cos(scaled), torch.sin(date), torch.cos(date)], dim=1)


def presence_loss(present_BL: Tensor, random_BL: Tensor, labels_B: Tensor) -> Tensor:
    """Return the loss of probabilities at the places of images and at as many random places."""
    losses_BL = -torch.log(1 - present_BL + _FLOOR)
    true_B1 = labels_B[:, None]
    # Times the number of classes: one presence stands against the assumed absence of all others.
    positive_B1 = -torch.log(present_BL.gather(1, true_B1) + _FLOOR) * present_BL.shape[1]
    return losses_BL.scatter(1, true_B1, positive_B1).mean() - torch.log(1 - random_BL + _FLOOR).mean()


def draw_conditions(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw places [count, 2], uniform on the sphere, and days of the year."""
    uniform = torch.rand(count, 3, generator=generator)
    # The sine of the latitude is uniform on a sphere; latitudes themselves would crowd at the poles.
    latitude = torch.rad2deg(torch.asin(2 * uniform[:, 0] - 1))
    return torch.stack([latitude, 360 * uniform[:, 1] - 180], dim=1), uniform[:, 2] * _DAYS


class LearnedPrior:
    """The network with what its factors are measured against.

    Args:
        means_L: mean probability of each class over training images.
        shares_L: share of training images; 0 for a class that has none.
    """

    name = "learned"

    def __init__(self, labels: Sequence[str], network: PresenceNetwork, means_L: Floats, shares_L: Floats) -> None:
        self.labels, self.network, self.means_L, self.shares_L = tuple(labels), network.eval(), means_L, shares_L

    @torch.no_grad()
    def score(self, places_U2: Floats, days_U: Floats) -> Floats:
        """Return probabilities of all classes at known places; without a day they are averaged over the year."""
        # Rows with a date repeat their day, so that one mean over the dates serves both cases.
        dates_D1 = (np.arange(_DATES)[:, None] + 0.5) * _DAYS / _DATES
        days_DU = np.where(np.isnan(days_U), dates_D1, days_U) if np.isnan(days_U).any() else days_U[None]
        places = torch.from_numpy(places_U2).float()
        sums_UL = np.zeros((len(places), len(self.labels)))
        for days in days_DU:
            sums_UL += self.network(encode_conditions(places, torch.from_numpy(days).float())).numpy()
        sums_UL /= len(days_DU)
        return sums_UL

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """See `Prior.factors`; columns are those of `labels`. Without a day factors are averaged over the year."""
        result = np.full((len(places_U2), len(self.labels)), np.nan)
        known = np.flatnonzero(~np.isnan(places_U2).any(axis=1))
        # The paper multiplies by p; here a factor is the probability of a class relative to its average.
        ratios = self.score(places_U2[known], days_U[known]) / np.maximum(self.means_L, _FLOOR)
        result[known] = normalize_ratios(ratios, self.shares_L)
        return result

    def save(self, folder: Path) -> Path:
        """Write the prior to a folder."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {"means": torch.from_numpy(self.means_L), "shares": torch.from_numpy(self.shares_L)}
        config = {"width": self.network.start.out_features}
        return write_prior(folder, self.name, self.labels, config, tensors, _NOTE)


def fit_prior(
    labels_N: ArrayLike,
    classes: Classes,
    *,
    places: ArrayLike | None = None,
    hours: ArrayLike | None = None,
    days: ArrayLike | None = None,
    settings: LearnedSettings | None = None,
) -> LearnedPrior:
    """Train the network on images with an animal's label and a place; arguments are those of `select_animals`.

    Hours are not read, and an image without a day gets a random one in each epoch.

    Raises:
        UserError: no image has both.
    """
    settings = settings or LearnedSettings()
    images = select_animals(labels_N, classes, places=places, days=days)
    rows = np.flatnonzero(~np.isnan(images.places_N2).any(axis=1))
    if not len(rows):
        raise UserError("prior: no training image has both an animal's label and a place")
    labels, places_N2, days_N = images.labels_N[rows], images.places_N2[rows], images.days_N[rows]
    generator = torch.Generator().manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    with torch.random.fork_rng(devices=[]):
        # Weights and dropout read the global generator of torch, which is given back as it was.
        torch.manual_seed(settings.seed)
        network = PresenceNetwork(settings.width, len(classes))
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings.decay)
        for _ in range(settings.epochs):
            for batch in _draw_batches(labels, settings, rng):
                # Drawn anew each epoch, so that an unknown day becomes no preferred one.
                dates = np.where(np.isnan(days_N[batch]), rng.random(len(batch)) * _DAYS, days_N[batch])
                here = encode_conditions(torch.from_numpy(places_N2[batch]).float(), torch.from_numpy(dates).float())
                elsewhere = encode_conditions(*draw_conditions(len(batch), generator))
                loss = presence_loss(network(here), network(elsewhere), torch.from_numpy(labels[batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step()
    shares_L = np.bincount(labels, minlength=len(classes)) / len(labels)
    # The means come from the trained network, which the prior puts into evaluation mode: dropout would blur them.
    prior = LearnedPrior(classes.labels, network, np.ones(len(classes)), shares_L)
    prior.means_L = prior.score(places_N2, days_N).mean(axis=0)
    return prior


def _draw_batches(labels_N: np.ndarray, settings: LearnedSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw at most `max_images` images of each class, in batches."""
    order = rng.permutation(len(labels_N))
    # Stable, so that images of a class stay in the random order: the first `max_images` are a draw of their own each
    # epoch.
    order = order[np.argsort(labels_N[order], kind="stable")]
    starts = np.searchsorted(labels_N[order], labels_N[order])
    selected = rng.permutation(order[np.arange(len(order)) - starts < settings.max_images])
    return [selected[n : n + settings.batch_size] for n in range(0, len(selected), settings.batch_size)]


def open_prior(path: Path, classes: Classes, taxa: Taxa, *, parts: Sequence[str]) -> SelectedPrior:
    """See `foveate.species.priors.open_prior`."""
    check_parts(path, parts, ("place", "season"))
    prior = load_learned(path)
    return SelectedPrior(prior, prior.labels, classes)


def load_learned(folder: Path) -> LearnedPrior:
    """Read the folder of a learned prior.

    Raises:
        UserError: the folder is none, or damaged.
    """
    config = read_prior_config(folder)
    labels = config["labels"]
    if not isinstance(config.get("width"), int):
        raise UserError(f"{folder}: field 'width' must be an integer (got {config.get('width')!r})")
    tensors = read_prior_tensors(folder, ("means", "shares"))
    # On the meta device, no weights are drawn just to be replaced.
    with torch.device("meta"):
        network = PresenceNetwork(config["width"], len(labels))
    expected = {f"network.{name}": value for name, value in network.state_dict().items()}
    vector = torch.empty(len(labels), device="meta")
    check_tensors(tensors, {**expected, "means": vector, "shares": vector}, folder / WEIGHTS)
    state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    network.load_state_dict(state, assign=True)
    return LearnedPrior(labels, network, tensors["means"].double().numpy(), tensors["shares"].double().numpy())

"""Sites whose centroids are unlike all others': a report for people, not a proof. Broken sensors and poison look alike.

Three signs, each against the median over sites, so that they hold while most sites are honest:

- alone: its centroids are far from those of the nearest other site, or from those of half of the others (three
  poisoned sites may well agree with one another);
- far away: its centroids are far from the middle of all, or in a refinement its sums are far from the centres;
- heavy: it says that it has more points than all others together, or many times as many as usual.

A site that alone has a group of points may be called alone, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.federated.clustering.distances import Floats, blocks, distances
from foveate.federated.clustering.pool import Pool
from foveate.federated.messages import Message
from foveate.federated.odd import FEWEST, beyond, odd_sizes

ALONE, FAR = 4.0, 6.0


def suspects(pool: Pool) -> dict[int, str]:
    """Why each suspected site is suspected; nothing can be said of fewer than four sites."""
    sites = np.unique(pool.client)
    if len(sites) < FEWEST:
        return {}
    reasons: dict[int, list[str]] = {int(site): [] for site in sites}
    gap_2Q = _to_other_sites(pool, sites)
    for gap_Q, whom in zip(gap_2Q, ("every other site's", "those of half of the other sites"), strict=True):
        gap_M = _by_site(pool, np.log(np.maximum(gap_Q, np.finfo(float).tiny)))
        for site, ratio in beyond(sites, gap_M, ALONE).items():
            reasons[site].append(f"its centroids are {ratio:.3g} times as far from {whom} as usual")
    middle_D = np.median(pool.centres, axis=0)
    away_M = _by_site(pool, np.log(np.maximum(distances(middle_D[None], pool.centres)[0], np.finfo(float).tiny)))
    for site, ratio in beyond(sites, away_M, FAR).items():
        reasons[site].append(f"its centroids are {ratio:.3g} times as far from the middle of all as usual")
    if pool.counted:
        for site, words in odd_sizes({int(site): pool.counts[pool.client == site].sum() for site in sites}).items():
            reasons[site].append(words)
    return {site: "; ".join(found) for site, found in reasons.items() if found}


def odd_sums(centres_KD: Floats, answers: Mapping[int, Message], *, sized: bool) -> dict[int, str]:
    """Why each suspected site of a refinement is suspected; `answers` hold its sums and counts.

    Args:
        sized: how many points a site has was told and judged before.
    """
    counts = {site: float(one.array("counts").sum()) for site, one in answers.items()}
    some = {site: one for site, one in answers.items() if counts[site] > 0}
    if len(some) < FEWEST:
        return {}
    away = []
    for site, answer in some.items():
        count_K = answer.array("counts")
        filled = count_K > 0
        gap_KD = answer.array("sums")[filled] / count_K[filled, None] - centres_KD[filled]
        away.append(np.sqrt(count_K[filled] @ (gap_KD**2).sum(1) / counts[site]))
    log_M = np.log(np.maximum(np.array(away), np.finfo(float).tiny))
    reasons = {
        site: [f"its sums are {ratio:.3g} times as far from the centres as usual"]
        for site, ratio in beyond(np.array(list(some)), log_M, FAR).items()
    }
    for site, words in ({} if sized else odd_sizes(counts)).items():
        reasons.setdefault(site, []).append(words)
    return {site: "; ".join(found) for site, found in reasons.items()}


def _to_other_sites(pool: Pool, sites: np.ndarray) -> Floats:
    """Distance of each centroid to the nearest other site, and to the site in the middle of the others, [2, Q].

    The distance to a site is that to its nearest centroid.
    """
    by_site = pool.take(np.argsort(pool.client, kind="stable"))
    starts = np.searchsorted(by_site.client, sites)
    found = np.empty((2, len(pool)))
    for place in blocks(len(pool), len(pool)):
        to_site_BM = np.minimum.reduceat(distances(pool.centres[place], by_site.centres), starts, axis=1)
        to_site_BM[pool.client[place, None] == sites[None]] = np.inf
        middle = (len(sites) - 1) // 2
        ordered = np.partition(to_site_BM, [0, middle], axis=1)
        found[:, place] = ordered[:, [0, middle]].T
    return found


def _by_site(pool: Pool, values_Q: Floats) -> Floats:
    """The median of each site's values."""
    return np.array([np.median(values_Q[pool.client == site]) for site in np.unique(pool.client)])

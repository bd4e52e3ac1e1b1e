"""Servers that depart from the protocol: each attack works without limits, and reads nothing from a real client.

The attacks are listed in `malicious_server.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attacked_client import attack_network, bare
from malicious_server import ATTACKS

from foveate.federated import node
from foveate.federated.limits import JOBS, ClientLimits

ALL_JOBS = {"jobs": ",".join(JOBS)}
READS_NOTHING = {"exact counts of near copies", "averages of noise until the budget is spent"}
"""Attacks that show what an answer with noise, or a number of points, does not say: they read nothing anywhere."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "TIME_CLASS_SECONDS", 1e-3)


def test_every_kind_of_message_is_attacked() -> None:
    assert {kind for attack in ATTACKS.values() for kind in attack.kinds} == set(node.KINDS)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - READS_NOTHING))
def test_every_attack_works_on_a_client_without_limits(name: str) -> None:
    attack = ATTACKS[name]
    rows, cells = attack.run(bare(attack.table)).count(attack.table, attack.within)
    assert rows >= attack.rows
    assert cells >= attack.cells
    assert attack.rows + attack.cells > 0


# Without noise nothing is proven: these attacks are stopped by the checks of what comes in.
@pytest.mark.parametrize(
    "jobs",
    [{}, ALL_JOBS, ALL_JOBS | {"noise_multiplier": 0.0}],
    ids=["default policy", "all jobs, default noise", "all jobs, no noise"],
)
@pytest.mark.parametrize("own", [{}, {"scale": "standard"}], ids=["default", "scale"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_client_over_a_network_lets_nobody_read(
    name: str, own: dict[str, Any], jobs: dict[str, Any], tmp_path: Path
) -> None:
    network, (rows, cells, near_rows, near_cells) = attack_network(ATTACKS[name], tmp_path, **jobs, **own)
    assert (rows, cells, near_rows) == (0, 0, 0), network.codes
    # With noise, a claim about a cell that is guessed is right to 1e-3 now and then; a row that is guessed never is.
    assert jobs or not near_cells
    assert network.epsilon() <= ClientLimits().max_epsilon

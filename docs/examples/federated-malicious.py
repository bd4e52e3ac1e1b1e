"""Attack clients as a server that departs from the protocol would, and print what it reads.

python federated-malicious.py [--only field]

The attacks are those of `tests/federated`, on every kind of message; the clients hold wine (178 rows, 13 columns,
standardized). A row or a cell counts as read if it is right to 1e-6 of a column's spread (without limits: to what the
attack is good for). `noise alone` answers all jobs with the default noise, and without the checks of weights and the
bounds that refuse most attacks on maps and encoders before they get an answer. Takes some ten minutes on one core.
"""

import argparse
import sys
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "federated"))
# The attacks are in the tests, so that no second copy of them can differ from what is tested.
from attacked_client import Attack, attack_network, bare
from malicious_server import ATTACKS

from foveate.core import progress
from foveate.federated import node
from foveate.federated.limits import JOBS

CLIENTS = {
    "default policy": {},
    "all jobs, default noise": {"jobs": ",".join(JOBS)},
    "all jobs, no noise": {"jobs": ",".join(JOBS), "noise_multiplier": 0.0},
    "noise alone": {"jobs": ",".join(JOBS), "max_axis_points": 100_000, "max_hidden": 100_000, "max_questions": 10_000},
}


def attack_all(attack: Attack) -> list[str]:
    """What is read of a client without limits, and of those with a policy: rows, cells, answers, epsilon."""
    reading = attack.run(bare(attack.table))
    texts = ["{} rows, {} cells".format(*reading.count(attack.table, attack.within))]
    for name, own in CLIENTS.items():
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            if name == "noise alone":
                stack.enter_context(mock.patch.object(node.Node, "_check_weights", return_value=None))
            # Without what the attack needs from the owner, its first request would be refused.
            network, (rows, cells, *_) = attack_network(attack, Path(folder), **own, **attack.own)
            answers = network.codes.count(None)
            texts.append(f"{rows} rows, {cells} cells; {answers} answers, epsilon {network.epsilon():.2g}")
    return texts


def main() -> None:
    """Print a row for each attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="attacks whose names have this in them")
    options = parser.parse_args()
    progress.configure(quiet=True)
    warnings.simplefilter("ignore")
    # A failure waits for the end of its time class, which only slows an attack down.
    node.TIME_CLASS_SECONDS = 1e-3
    print(f"| attack | messages | no limits | {' | '.join(CLIENTS)} |")
    print("|---" * (3 + len(CLIENTS)) + "|")
    for name, attack in ATTACKS.items():
        if options.only in name:
            with np.errstate(all="ignore"):
                cells = attack_all(attack)
            print(f"| {name} | {', '.join(attack.kinds)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

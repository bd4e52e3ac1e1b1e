"""Commands of Flower's own programs that run a federation, and their variables; nothing is started here.

These are the steps of the page on networks. Everybody on a machine can see its commands: they hold paths and names,
no key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.federated.flower.keys import CA, RUNTIME, RUNTIME_KEY, SERVER, SERVER_KEY, node_key

SUPERLINK, SUPERNODE, FLWR = "flower-superlink", "flower-supernode", "flwr"
CONNECTION = "ours"
PORT, FIRST_RUNTIME_PORT = 8000, 9150
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
_HOME, _DATABASE, _APP = "flower-home", "superlink.db", "app"


def variables(folder: Path) -> dict[str, str]:
    """Environment of every process of Flower: where its state is, no installs, no telemetry."""
    return {
        # Use a Flower home of our own, so that connections and state of other federations stay out of this one.
        "FLWR_HOME": str(home(folder)),
        # Otherwise Flower installs packages when a run starts, which fails offline.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # Otherwise Flower and Ray, which a simulation starts, report usage.
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def home(folder: Path) -> Path:
    """Flower's folder of state and connections, of this federation only."""
    return folder.resolve() / _HOME


def app_folder(folder: Path) -> Path:
    """Folder of the app that `flwr run` needs."""
    return folder.resolve() / _APP


@dataclass(frozen=True)
class Address:
    """Address by which clients reach the server."""

    host: str
    port: int = PORT

    @classmethod
    def read(cls, text: str) -> Address:
        """HOST, HOST:PORT, or an IPv6 address in brackets.

        Raises:
            UserError: it is none of these.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+))(?::(\d+))?", text)
        if match is None:
            raise UserError(f"address '{text}': expected HOST or HOST:PORT, such as server.example.org:8000")
        port = int(match[3] or PORT)
        if not 0 < port < 65536:
            raise UserError(f"address '{text}': the port must be from 1 to 65535")
        return cls(match[1] or match[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listening(address: str) -> str:
    """Default host that a server listens on: loopback if clients use that address, else all interfaces."""
    # Clients that call loopback run on this machine, so the server need not be reachable from others.
    return LOOPBACK if address in (LOOPBACK, "localhost") else EVERYWHERE


def connection(folder: Path, address: Address, *, insecure: bool) -> str:
    """Content of Flower's `config.toml`: how `flwr` reaches the SuperLink."""
    trust = "insecure = true" if insecure else f"root-certificates = {json.dumps(str(folder.resolve() / CA))}"
    name = CONNECTION
    return f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\naddress = "{address}"\n{trust}\n'


def superlink(folder: Path, *, host: str, port: int, insecure: bool) -> list[str]:
    """Command that starts the server."""
    folder = folder.resolve()
    command = [SUPERLINK, "--host", host, "--port", str(port), "--database", str(folder / _DATABASE)]
    command.append("--disable-runtime-dependency-installation")
    if insecure:
        return [*command, "--insecure"]
    command += ["--enable-supernode-auth", "--ssl-ca-certfile", str(folder / CA)]
    return [*command, "--ssl-certfile", str(folder / SERVER), "--ssl-keyfile", str(folder / SERVER_KEY)]


def supernode(
    folder: Path, *, server: Address, client: int, port: int, node: Mapping[str, Any], insecure: bool
) -> list[str]:
    """Command that starts a client's node.

    Args:
        port: of its own processes. node: the node's configuration besides its number.
    """
    folder = folder.resolve()
    command = [SUPERNODE, "--superlink", str(server)]
    if insecure:
        command.append("--insecure")
    else:
        # The runtime certificate is its own authority: only the node's own processes use that port.
        runtime = str(folder / RUNTIME)
        command += ["--root-certificates", str(folder / CA)]
        command += ["--auth-supernode-private-key", str(node_key(folder, client))]
        command += ["--ssl-ca-certfile", runtime, "--ssl-certfile", runtime, "--ssl-keyfile", str(folder / RUNTIME_KEY)]
    return [*command, "--port", str(port), "--node-config", configuration({"partition-id": client, **node})]


def register(key: Path) -> list[str]:
    """Command that registers the node of a public key."""
    return [FLWR, "supernode", "register", str(key.resolve()), CONNECTION]


def run(folder: Path, fields: Mapping[str, Any]) -> list[str]:
    """Command that starts a job and shows its output.

    Args:
        fields: of the run configuration that differ from the app's.
    """
    return [FLWR, "run", str(app_folder(folder)), CONNECTION, "--stream", "--run-config", configuration(fields)]


def stop(number: str) -> list[str]:
    """Command that ends a run, which continues at the server when `flwr run` ends."""
    return [FLWR, "stop", number, CONNECTION]


def configuration(values: Mapping[str, Any]) -> str:
    """Fields in the form that Flower reads: NAME=VALUE, separated by spaces."""
    return " ".join(f"{name}={_written(name, value)}" for name, value in values.items())


def _written(name: str, value: Any) -> str:
    """Write a value in TOML.

    Flower looks for the next quote of the same kind and does not know escapes, so the quotes are chosen by the content.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    # A line break in a value would begin a new field of the configuration.
    if any(not character.isprintable() for character in value):
        raise UserError(f"{name} must have printable characters only (got {value!r})")
    if not set(value) & set('"\\'):
        return f'"{value}"'
    if "'" not in value:
        return f"'{value}'"
    raise UserError(f"{name} {value!r}: Flower takes no text with both kinds of quotes, or with a backslash and '")


def shell_lines(environment: Mapping[str, str], commands: Sequence[Sequence[str]]) -> list[str]:
    """Shell lines with the same effect."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return exports + [shlex.join(command) for command in commands]

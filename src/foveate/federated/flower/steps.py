"""Steps of the server, a client and a run: check that everything is there, start Flower's programs, stop them.

Everything that can be known before is checked before anything starts.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say
from foveate.federated.flower import commands
from foveate.federated.flower.app import read_job, write_app
from foveate.federated.flower.commands import Address
from foveate.federated.flower.keys import CA, check_client, check_public_key, check_server
from foveate.federated.flower.processes import Child, answers, is_free, program, started, stopped_by_signals
from foveate.federated.limits import ClientLimits
from foveate.federated.points import ReadOptions
from foveate.federated.policy import describe_limits, expand
from foveate.federated.run_failure import FILE, RunFailedError
from foveate.federated.sources import read_points

_START_SECONDS = 120.0
INSECURE = (
    "warning: --insecure: no TLS and no node keys. Whoever is on the network reads and changes what clients send, and "
    "anybody may be a client. Only for trials on one machine."
)
REASONS = (
    ("[code: 2004]", "its key is not registered at the server: send the file that ends in .pub there"),
    ("[code: 2001]", "the server wants keys: leave --insecure out"),
    ("certificate verify failed", "the server is not the one that the authority vouches for"),
    ("Server disconnected without sending", "one side speaks TLS and the other does not: --insecure on both, or none"),
    ("401 Unauthorized", "it was taken out at the server, or the server lost its superlink.db: start it again"),
    ("address already in use", "its port is in use: give another --port"),
)
"""What Flower prints when one of its programs ends, and what that means."""
IN_USE = "Public key already in use"
_FAREWELLS = ("SuperExec terminated gracefully.", "For more information, visit")
"""Last lines of Flower that say nothing about the run."""


def serve(folder: Path, address: Address, *, host: str, insecure: bool, ready: Callable[[], None]) -> None:
    """Run the server until it is stopped.

    Raises:
        UserError: something is missing or taken, or the server ends by itself.
    """
    # Everything is checked before the first process starts, where a mistake is one sentence and not a log.
    program(commands.SUPERLINK)
    if not insecure:
        check_server(folder, address.host, host)
    if not is_free(host, address.port):
        raise UserError(
            f"port {address.port} of {host} is in use; stop the server that uses it, or give another --address"
        )
    _prepare(folder)
    content = commands.connection(folder, address, insecure=insecure)
    write_text_atomically(commands.home(folder) / "config.toml", content)
    command = commands.superlink(folder, host=host, port=address.port, insecure=insecure)
    # "All interfaces" is an address to listen on, none to connect to.
    local_host = commands.LOOPBACK if host == commands.EVERYWHERE else host
    until = time.monotonic() + _START_SECONDS

    def is_up() -> bool:
        return answers(address.port, local_host) or time.monotonic() > until

    with _running(folder, command, insecure=insecure) as child:
        _still(child, is_up)
        if not answers(address.port, local_host):
            raise UserError(f"{child.name} does not answer on port {address.port} within {_START_SECONDS:g} s")
        ready()
        _still(child, lambda: False)


def join(
    folder: Path,
    server: Address,
    *,
    client: int,
    port: int,
    node: Mapping[str, Any],
    insecure: bool,
    ready: Callable[[], None],
) -> None:
    """Run a client's node until it is stopped.

    Args:
        node: its configuration: `data`, a `policy`, and what else `limits.NODE_FIELDS` allow.
        ready: called when the server has accepted it.

    Raises:
        UserError: something is missing, taken or wrong, the server is another one, or the node ends by itself.
    """
    program(commands.SUPERNODE)
    # Read here, although the node's process does it again: a misspelled limit is an error before anything starts.
    expanded = expand(node)
    limits = ClientLimits.of_node(expanded)
    if not insecure:
        check_client(folder, client)
    # The node reads them anew for each request; here they are only checked.
    rows, columns = _check_data(Path(node["data"]), ReadOptions.of_config(expanded))
    limits.need_points(rows)
    say(f"{node['data']}: {rows:,} points of {columns}")
    # Print the limits before the node connects: afterwards it is too late.
    for line in describe_limits(limits, server=str(server)):
        say(line)
    if not is_free(commands.LOOPBACK, port):
        raise UserError(f"port {port} is in use; give this node another --port")
    _prepare(folder)
    if not insecure:
        greet(server, folder / CA)
    command = commands.supernode(folder, server=server, client=client, port=port, node=node, insecure=insecure)
    with _running(folder, command, insecure=insecure) as child:
        _still(child, lambda: "SuperNode ID:" in child.text)
        ready()
        _still(child, lambda: False)


def _check_data(path: Path, options: ReadOptions) -> tuple[int, str]:
    """Read a client's points once; return how many there are, and of which columns."""
    points = read_points(path, options)
    names = f" ({', '.join(points.names()[:20])})" if points.names() else ""
    dropped = f", without {points.num_dropped:,} rows of missing values" if points.num_dropped else ""
    return len(points.points_ND), f"{points.points_ND.shape[1]} features{names}{dropped}"


def register(folder: Path, keys: Sequence[Path]) -> list[str]:
    """Register the nodes of these public keys; return the ids of new nodes.

    Raises:
        UserError: a file is no public key; no server of this folder answers, or it refuses.
    """
    # All files are checked before the first is registered: a bad one must not leave half of the list done.
    for key in keys:
        check_public_key(key)
    _need_connection(folder)
    node_ids = []
    for key in keys:
        with _running(folder, commands.register(key), insecure=False) as child:
            status = child.wait()
            output = child.text
        number = re.search(r"SuperNode (\d+) registered", output)
        if number:
            node_ids.append(number[1])
        # This is no error, so that the same command can be repeated with a longer list.
        elif IN_USE.lower() in output.lower():
            say(f"{key} is registered already")
        else:
            raise UserError(f"{key}: was not registered (exit {status}); does the server run?{_message(output)}")
    return node_ids


def carry_out(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Run one job on the server's machine and wait for its end; return the folder of the result.

    Args:
        fields: of the run configuration that differ from the app's defaults; `out` among them.

    Raises:
        RunFailedError: the run ended without a result, and its server says why.
        UserError: a configuration that does not fit, no server, or a run that ends without a result or a reason.
    """
    # The same checks as at the server, but before the run is sent there.
    read_job(fields)
    program(commands.FLWR)
    _need_connection(folder)
    write_app(commands.app_folder(folder))
    out = Path(fields["out"])
    result, failure = out / "result.json", out / FILE
    # Files of an earlier run in the same folder must not pass for this one's.
    before = {path: _time_of(path) for path in (result, failure)}
    with _running(folder, commands.run(folder, fields), insecure=False) as child:
        status = None
        try:
            status = child.wait()
        finally:
            output = child.text
            # The status is None after Ctrl-C or a signal: `flwr run` only follows a run, which would go on at the
            # server.
            if status is None:
                _stop_run(folder, output)
    if _time_of(failure) not in (0, before[failure]):
        raise RunFailedError.read(out)
    if _time_of(result) in (0, before[result]):
        raise UserError(f"{out}: the run ended (exit {status}) without a result{_last(output)}")
    return out


def _time_of(path: Path) -> int:
    """Time of a file's last change in nanoseconds; 0 if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def _stop_run(folder: Path, output: str) -> None:
    """End a run at the server, where it continues when `flwr run`, which printed this, is stopped."""
    match = re.search(r"started run (\d+)", output)
    if match is not None:
        say(f"stopping the run {match[1]} at the server")
        with started(commands.stop(match[1]), commands.variables(folder)) as child:
            until = time.monotonic() + _START_SECONDS / 4
            child.wait(lambda: time.monotonic() > until)


@contextlib.contextmanager
def _running(folder: Path, command: list[str], *, insecure: bool) -> Iterator[Child]:
    """Print a command with its variables and run it; signals end it."""
    environment = commands.variables(folder)
    if insecure:
        say(INSECURE)
    for line in commands.shell_lines(environment, [command]):
        say(line)
    with stopped_by_signals(), started(command, environment) as child:
        yield child


def _still(child: Child, until: Callable[[], bool]) -> None:
    """Wait for a condition; raise UserError if the program ends before."""
    status = child.wait(until)
    if status is None:
        return
    output = child.text
    why = next((f": {meaning}" for mark, meaning in REASONS if mark.lower() in output.lower()), _last(output))
    raise UserError(f"{child.name} ended by itself (exit {status}){why}")


def _last(output: str) -> str:
    """The last line with content, without colors, as the end of a sentence."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()]
    lines = [line for line in lines if re.search(r"\w", line) and not any(text in line for text in _FAREWELLS)]
    return f"; its last line: {lines[-1]}" if lines else ""


def _message(output: str) -> str:
    """Return the message in Flower's box, whole and without its frame; the last line if there is no box."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    rows = [match[1].strip() for match in re.finditer(r"^\s*│(.*)│\s*$", plain, re.MULTILINE)]
    text = " ".join(row for row in rows if row)
    return f"; Flower says: {text}" if text else _last(output)


def _prepare(folder: Path) -> None:
    """Make Flower's home, which Flower does not make itself when it only reads from it."""
    commands.home(folder).mkdir(mode=0o700, parents=True, exist_ok=True)


def _need_connection(folder: Path) -> None:
    program(commands.FLWR)
    if not (commands.home(folder) / "config.toml").is_file():
        raise UserError(f"{folder}: no server was started with this folder; run `foveate federated server` first")


def greet(server: Address, authority: Path) -> None:
    """Raise UserError if the server shows another authority or name, or no TLS at all.

    A server that does not answer yet is no mistake: the node keeps trying.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        # Do a handshake before the node starts, because its error is one clear sentence.
        with socket.create_connection((server.host, server.port), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname=server.host):
                return
    except ssl.SSLCertVerificationError as problem:
        raise UserError(
            f"{server}: {authority} does not vouch for this server ({problem.verify_message}); copy ca.crt from the "
            "server's folder again, and call the server by the --address that it was given"
        ) from None
    except ssl.SSLError as problem:
        raise UserError(f"{server}: answers without TLS ({problem.reason}); is it the right port?") from None
    except OSError as problem:
        say(f"{server}: does not answer yet ({problem.strerror or problem}); the node keeps trying")

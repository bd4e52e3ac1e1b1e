"""Programs that `foveate federated server` and `client` start, with stand-ins for Flower's, end with all they started.

The stand-in listens on its port and starts a process in a session of its own that takes no SIGTERM, as Flower's may.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.federated.flower import keys, processes, steps
from foveate.federated.flower.commands import Address
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.reasons import failure_values, read_failure
from foveate.federated.run_failure import RunFailure
from naming import raises_naming

ROOT = Path(__file__).resolve().parents[2]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
LINK = f"""#!{sys.executable}
import os, pathlib, socket, subprocess, sys, time
own = pathlib.Path(os.environ["FLWR_HOME"])
late = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
(own / "pids").write_text(f"{{os.getpid()}} {{late.pid}}")
if (own / "fails").exists():
    print((own / "fails").read_text(), flush=True)
    time.sleep(2.5)
    sys.exit(7)
listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
print("SuperNode ID: 5", flush=True)
time.sleep(300)
"""
FLWR = f"""#!{sys.executable}
import os, pathlib, sys, time
own = pathlib.Path(os.environ["FLWR_HOME"])
if sys.argv[1] == "stop":
    (own / "stopped").write_text(" ".join(sys.argv[2:]))
elif sys.argv[1] == "run":
    print("Successfully started run 77", flush=True)
    (own / "running").touch()
    if (own / "refused").exists():
        path, _, content = (own / "refused").read_text().partition("\\n")
        pathlib.Path(path).parent.mkdir(exist_ok=True)
        pathlib.Path(path).write_text(content)
    print("For more information, visit: <https://flower.ai/docs>", flush=True)
    time.sleep(300 if (own / "long").exists() else 0)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins for Flower's programs, in which they are looked for."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in (("flower-superlink", LINK), ("flower-supernode", LINK), ("flwr", FLWR)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o700)
    monkeypatch.setattr(processes, "_programs", lambda: folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(number: int) -> bool:
    """Whether a process has ended; one whose status nobody has asked for counts."""
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pids(home: Path) -> list[int]:
    return [int(one) for one in (home / "pids").read_text().split()]


@contextlib.contextmanager
def foveate(programs: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`foveate federated ...` in a process of its own, with the stand-ins."""
    code = (
        "import signal, sys; from pathlib import Path; from foveate.federated.flower import processes\n"
        # Tests that a shell starts in the background, or under nohup, have these two ignored.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"processes._programs = lambda: Path({str(programs)!r}); processes._PATIENCE_SECONDS = 2.0\n"
        "from foveate.cli.main import main; main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "federated", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def insecure_server(folder: Path) -> list[str]:
    return ["server", "--folder", str(folder), "--address", f"localhost:{free_port()}", "--insecure", "--json"]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all(programs: Path, tmp_path: Path, number: int, status: int) -> None:
    folder = tmp_path / "server"
    with foveate(programs, *insecure_server(folder)) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["command"][0] == "flower-superlink"
        started = pids(folder / "flower-home")
        assert not any(map(ended, started))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert all(map(ended, started))
    assert "warning: --insecure: no TLS" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_program_that_ends_by_itself_ends_all(programs: Path, tmp_path: Path) -> None:
    home = tmp_path / "server" / "flower-home"
    home.mkdir(parents=True)
    (home / "fails").write_text("[code: 2004] Failed to activate SuperNode")
    with foveate(programs, *insecure_server(home.parent)) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "foveate: flower-superlink ended by itself (exit 7): its key is not registered" in said
    assert all(map(ended, pids(home)))


def test_stopping_a_run_stops_it_at_the_server(programs: Path, tmp_path: Path) -> None:
    home = tmp_path / "server" / "flower-home"
    home.mkdir(parents=True)
    for name in ("config.toml", "long"):
        (home / name).touch()
    options = ["--folder", str(home.parent), "--clients", "2", "--out", str(tmp_path / "out")]
    with foveate(programs, "run", *options) as process:
        until = time.monotonic() + 60
        while not (home / "running").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert (home / "stopped").read_text() == "77 ours"


def test_a_run_without_a_result_says_so(programs: Path, tmp_path: Path) -> None:
    home = tmp_path / "server" / "flower-home"
    home.mkdir(parents=True)
    (home / "config.toml").touch()
    with raises_naming(UserError, "0"):
        steps.carry_out(home.parent, {"out": str(tmp_path / "out"), "clients": 2})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="without a result"):  # that of an earlier run is none
        steps.carry_out(home.parent, {"out": str(tmp_path / "out"), "clients": 2})


def test_a_run_that_is_refused_says_why(programs: Path, tmp_path: Path) -> None:
    """Before: "... without a result; its last line: For more information, visit: <https://flower.ai/docs>"."""
    home, out = tmp_path / "server" / "flower-home", tmp_path / "out"
    home.mkdir(parents=True)
    (home / "config.toml").touch()
    options = ["--folder", str(home.parent), "--clients", "2", "--out", str(out)]
    with foveate(programs, "run", *options, "--json") as process:
        answer, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert answer == ""
    assert said.splitlines()[-1].endswith("without a result; its last line: Successfully started run 77")
    reason = read_failure(Message("query.centroids", values=failure_values("max-partitions", 1)))
    failure = RunFailure("0 of 2 clients answered", 2, {0: reason, 1: reason})
    (home / "refused").write_text(f"{out / 'failure.json'}\n{json.dumps(failure.to_json())}")
    with foveate(programs, "run", *options, "--json") as process:
        answer, said = process.communicate(timeout=60)
    assert process.returncode == 1
    first, second = said.splitlines()[-2:]
    assert first == f"foveate: {out}: the run ended without a result"
    assert second.startswith("2 of 2 clients: max-partitions: its own max-partitions 1 of these data are used up")
    assert "`max_partitions`" in second
    assert second.endswith("(client 0, client 1)")
    result = json.loads(answer)
    assert (result["job"], result["error"], result["paths"]) == ("cluster", "0 of 2 clients answered", {})
    (row,) = result["failures"]
    assert (row["code"], row["clients"]) == ("max-partitions", ["client 0", "client 1"])
    # The failure of that run is none of the next one.
    (home / "refused").unlink()
    with raises_naming(UserError, "0"):
        steps.carry_out(home.parent, {"out": str(out), "clients": 2})


def test_a_message_in_a_box_is_quoted_whole() -> None:
    rows = ("│ Check your │", "│ \x1b[1mconnection\x1b[0m and 'address' │")
    boxed = "\n".join(("Using SuperLink: ours", "╭─ Error ──╮", *rows, "╰──────────╯", ""))
    assert steps._message(boxed) == "; Flower says: Check your connection and 'address'"
    assert steps._message("first\nrefused\n") == "; its last line: refused"


def test_a_client_is_checked_before_it_starts(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "words.npz").write_text("no arrays")
    port = free_port()

    def join(data: Path, **node: int) -> None:
        given = {"data": str(data), "min-count": 1, **node}
        steps.join(
            tmp_path / "client",
            Address("localhost"),
            client=0,
            port=port,
            node=given,
            insecure=True,
            ready=lambda: pytest.fail("started"),
        )

    with raises_naming(UserError, "nowhere.npz"):
        join(tmp_path / "nowhere.npz")
    with raises_naming(UserError, "words.npz"):
        join(tmp_path / "words.npz")
    np.savez(tmp_path / "points.npz", points=np.zeros((4, 2)))
    with raises_naming(UserError, "0"):
        join(tmp_path / "points.npz", **{"min-count": 0})
    with socket.create_server(("127.0.0.1", port)), raises_naming(UserError, port):
        join(tmp_path / "points.npz")
    assert not (tmp_path / "client").exists()


def test_a_server_whose_port_is_taken(programs: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("localhost", taken.getsockname()[1])
        with raises_naming(UserError, address.port, "127.0.0.1"):
            steps.serve(tmp_path / "s", address, host="127.0.0.1", insecure=True, ready=lambda: pytest.fail("started"))
    assert not (tmp_path / "s").exists()


def test_flower_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_programs", lambda: tmp_path)
    with raises_naming(UserError, ".[flower]"):
        steps.serve(tmp_path, Address("localhost"), host="127.0.0.1", insecure=True, ready=lambda: None)


@contextlib.contextmanager
def answering(context: ssl.SSLContext | None) -> Iterator[int]:
    """A port that speaks TLS, or sends words without it."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            plain.settimeout(10)
            with plain, contextlib.suppress(OSError):
                if context is None:
                    plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    plain.recv(1000)
                else:
                    context.wrap_socket(plain, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def test_a_client_looks_whom_it_speaks_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    for name in ("server", "other"):
        keys.make_server_keys(tmp_path / name, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "server.pem", tmp_path / "server" / "server.key")
    authority = tmp_path / "server" / "ca.crt"
    with answering(context) as port:
        steps.greet(Address("localhost", port), authority)
    assert "does not answer" not in capsys.readouterr().err
    with answering(context) as port, pytest.raises(UserError, match="does not vouch for this server"):
        steps.greet(Address("localhost", port), tmp_path / "other" / "ca.crt")
    with answering(None) as port, pytest.raises(UserError, match="answers without TLS"):
        steps.greet(Address("localhost", port), authority)
    steps.greet(Address("localhost", free_port()), authority)
    assert "does not answer yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "warned"),
    [
        ({"min_count": 1}, ["--min-count 1", "rows of the data can leave"]),
        ({"min_count": 4}, ["--min-count 4"]),
        ({"min_count": 10, "max_partitions": 3}, ["--max-partitions 3", "one point"]),
        ({"min_count": 10, "jobs": ("cluster", "embed"), "noise_multiplier": 0}, ["job embed", "can read rows"]),
        ({"min_count": 10}, []),
    ],
)
def test_a_client_is_warned_before_it_connects(limits: dict, warned: list[str]) -> None:
    lines = steps.describe_limits(ClientLimits(**limits))
    warnings = [line for line in lines if line.startswith("warning")]
    assert not [text for text in warned if text not in " ".join(warnings)]
    assert bool(warnings) == bool(warned)
    assert str(limits["min_count"]) in lines[0]


@pytest.mark.parametrize("has_policy", [False, True])
def test_the_warning_comes_before_the_node_starts(
    has_policy: bool,
    programs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.savez(tmp_path / "points.npz", points=np.zeros((4, 2)))
    monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 0.5)  # the node's program ends for no signal

    class Started(Exception):
        pass

    def ready() -> None:
        screen = capsys.readouterr().err.partition("flower-supernode")[0]
        assert "rows of the data can leave" in screen
        assert f"to: localhost:{address.port}; " in screen
        assert f"{3 if has_policy else 500} questions about these data" in screen
        raise Started

    (tmp_path / "own.yaml").write_text("{min_count: 1, max_questions: 3}")
    own = {"policy": str(tmp_path / "own.yaml")} if has_policy else {"min-count": 1}
    address = Address("localhost", free_port())

    with pytest.raises(Started):
        steps.join(
            tmp_path / "client",
            address,
            client=0,
            port=free_port(),
            node={"data": str(tmp_path / "points.npz"), **own},
            insecure=True,
            ready=ready,
        )

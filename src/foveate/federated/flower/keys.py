"""Make and check keys and certificates of a federation with `openssl` and `ssh-keygen`, as the page on networks does.

A folder holds, at the server, `ca.key` and `ca.crt` (an authority) and `server.key` and `server.pem` (the name by which
clients call the server, and 127.0.0.1, by which its own processes do); at client 3 `client3` and `client3.pub` (the
node's key, elliptic curve P-384 in OpenSSH's form), `runtime.key` and `runtime.pem` (for the port of its own processes)
and the server's `ca.crt`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from foveate.core.errors import UserError

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
RUNTIME, RUNTIME_KEY = "runtime.pem", "runtime.key"
LOOPBACK = "127.0.0.1"
"""Address by which the server's own processes, and a client's, reach their port."""
MAKE = "--make-keys"
# Every certificate is valid for a year; after that the same command makes new ones.
_DAYS = "365"
# `-nodes` means no passphrase: servers and nodes start unattended.
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_PACKAGES = {"openssl": "openssl", "ssh-keygen": "openssh-client"}
_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_P384 = "ecdsa-sha2-nistp384 "


def is_number(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def alternative_names(address: str) -> str:
    """subjectAltName of a server that clients reach by `address`."""
    names = [f"{'IP' if is_number(address) else 'DNS'}:{address}", f"IP:{LOOPBACK}"]
    return "subjectAltName=" + ",".join(dict.fromkeys(names))


def node_key(folder: Path, client: int) -> Path:
    """Path of the private key of a client's node."""
    return folder / f"client{client}"


def make_server_keys(folder: Path, address: str) -> list[Path]:
    """Make an authority and a server's certificate signed by it, whichever is missing; return the new files.

    Raises:
        UserError: both are there, or one without its key; a tool is missing or refuses.
    """
    files = []
    with _workshop(folder) as workshop:
        if _is_missing(folder, CA, CA_KEY):
            usage = "keyUsage=critical,keyCertSign,cRLSign"
            authority = ["-subj", "/CN=our own authority", "-addext", usage]
            _openssl(workshop, "req", "-x509", *_NEW_KEY, "-days", _DAYS, "-keyout", CA_KEY, "-out", CA, *authority)
            files += _move(workshop, folder, CA_KEY, CA)
        if _is_missing(folder, SERVER, SERVER_KEY):
            request, names, signer = "server.csr", "server.ext", folder.resolve()
            subject = f"/CN={address[:64]}"  # X.509 allows 64 characters; clients look at the alternative names only
            _openssl(workshop, "req", *_NEW_KEY, "-keyout", SERVER_KEY, "-out", request, "-subj", subject)
            # The address goes into the alternative names, the only place where TLS clients look today.
            (Path(workshop) / names).write_text(alternative_names(address), encoding="utf-8")
            signing = [
                "-CA",
                str(signer / CA),
                "-CAkey",
                str(signer / CA_KEY),
                "-CAserial",
                "ca.srl",
                "-CAcreateserial",
            ]
            signed = ["-days", _DAYS, "-extfile", names, "-out", SERVER]
            _openssl(workshop, "x509", "-req", "-in", request, *signing, *signed)
            files += _move(workshop, folder, SERVER_KEY, SERVER)
    if not files:
        raise UserError(f"{folder}: all keys and certificates exist already; nothing was made")
    return files


def make_client_keys(folder: Path, client: int) -> list[Path]:
    """Make the key of a client's node, and the certificate of its runtime port if missing; return the new files.

    Raises:
        UserError: the key is there, or one file without its other; a tool is missing or refuses.
    """
    key = node_key(folder, client)
    if not _is_missing(folder, key.name, f"{key.name}.pub"):
        raise UserError(f"{key}: exists already; nothing was made. Delete it first if it was lost or seen by others")
    with _workshop(folder) as workshop:
        # ssh-keygen, not openssl: Flower reads node keys in OpenSSH's form only.
        _run(workshop, ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", key.name, "-f", key.name])
        files = _move(workshop, folder, key.name, f"{key.name}.pub")
        if _is_missing(folder, RUNTIME, RUNTIME_KEY):
            names, usage = alternative_names(LOOPBACK), "keyUsage=critical,digitalSignature,keyCertSign"
            subject = ["-subj", "/CN=this client", "-addext", names, "-addext", usage]
            _openssl(
                workshop, "req", "-x509", *_NEW_KEY, "-days", _DAYS, "-keyout", RUNTIME_KEY, "-out", RUNTIME, *subject
            )
            files += _move(workshop, folder, RUNTIME_KEY, RUNTIME)
    return files


def check_server(folder: Path, address: str, host: str) -> None:
    """Check that the folder's certificate is valid for a server that clients reach by `address`.

    Args:
        host: where it listens; its own processes use that, or 127.0.0.1 where it listens everywhere.

    Raises:
        UserError: a file is missing, or the certificate has another authority, key or name, or has expired.
    """
    _need(folder, (CA, SERVER, SERVER_KEY))
    for key in (folder / SERVER_KEY, folder / CA_KEY):
        check_private(key)
    # List both names: clients use the address, the server's own processes the loopback or the host it listens on.
    for name in dict.fromkeys((address, LOOPBACK if host == "0.0.0.0" else host)):
        verify(folder / CA, folder / SERVER, name)
    same_key(folder / SERVER, folder / SERVER_KEY)


def check_client(folder: Path, client: int) -> None:
    """Check that the folder has what a client's node needs.

    Raises:
        UserError: a file is missing, or of another kind.
    """
    key = node_key(folder, client)
    _need(folder, (key.name, RUNTIME, RUNTIME_KEY))
    if not (folder / CA).is_file():
        raise UserError(f"{folder / CA}: missing; copy it from the server's folder")
    for private in (key, folder / RUNTIME_KEY):
        check_private(private)
    if not key.read_text(encoding="utf-8", errors="replace").startswith(_OPENSSH):
        raise UserError(f"{key}: not a private key in OpenSSH's form, which Flower needs; make one with {MAKE}")
    verify(folder / RUNTIME, folder / RUNTIME, LOOPBACK)
    same_key(folder / RUNTIME, folder / RUNTIME_KEY)


def check_private(key: Path) -> None:
    """Raise UserError if others than its owner may read or write a private key; a missing file passes.

    ssh refuses such keys, too: whoever copies a node's key can answer in its name.
    """
    # The authority's key may be stored elsewhere: a running server does not need it.
    if key.is_file() and (mode := key.stat().st_mode & 0o777) & 0o077:
        raise UserError(f"{key}: others may read it (mode {mode:o}); expected 600: run `chmod 600 {key}`")


def check_public_key(path: Path) -> None:
    """Raise UserError if a file is missing, another kind of key, or a private one."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a client makes it with `foveate federated client {MAKE}` and sends it")
    text = path.read_text(encoding="utf-8", errors="replace")
    # Looked for anywhere in the file, before its kind: a private key must not travel to the server.
    if "PRIVATE KEY" in text:
        raise UserError(f"{path}: a private key, which never leaves its client; the public one ends in .pub")
    if not text.startswith(_P384):
        raise UserError(f"{path}: not a public key of elliptic curve P-384 in OpenSSH's form; make one with {MAKE}")


def verify(authority: Path, certificate: Path, name: str) -> None:
    """Raise UserError, with openssl's reason, unless the authority vouches for the certificate under that name."""
    option = "-verify_ip" if is_number(name) else "-verify_hostname"
    command = ["openssl", "verify", "-CAfile", str(authority.resolve()), option, name, str(certificate.resolve())]
    done = _done(command, authority.parent)
    if done.returncode == 0:
        return
    match = re.search(r"error \d+ at \d+ depth lookup: *(.+)", done.stdout + done.stderr)
    reason = match[1] if match else (done.stderr.strip().splitlines() or ["openssl gives no reason"])[-1]
    again = f"remove it and its key and make them again with {MAKE}"
    if "mismatch" in reason:
        raise UserError(f"{certificate} is not valid for '{name}' ({reason}); {again}")
    raise UserError(f"{certificate} is not valid under {authority} ({reason}); {again}")


def same_key(certificate: Path, key: Path) -> None:
    """Raise UserError if a private key is not that of a certificate, or one of the two cannot be read."""
    ours = _openssl(key.parent, "pkey", "-in", str(key.resolve()), "-pubout")
    theirs = _openssl(key.parent, "x509", "-in", str(certificate.resolve()), "-noout", "-pubkey")
    # Compared as public keys: that of the private key, and that in the certificate.
    if ours != theirs:
        raise UserError(f"{key} is not the key of {certificate}; remove both and make them again with {MAKE}")


def _need(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} missing; make keys and certificates with {MAKE} first")


def _is_missing(folder: Path, *names: str) -> bool:
    """Whether all of these are missing.

    Raises:
        UserError: some are and some are not.
    """
    there = [name for name in names if (folder / name).exists()]
    if there and len(there) < len(names):
        missing = ", ".join(name for name in names if name not in there)
        raise UserError(f"{folder} has {', '.join(there)} but not {missing}; restore it, or remove both for new ones")
    return not there


def _workshop(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder next to the keys, for the owner only: a half-made key is never taken for a whole one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Inside the folder itself: `os.replace` is atomic only within one file system.
    return tempfile.TemporaryDirectory(dir=folder, prefix=".making-")


def _move(workshop: str, folder: Path, *names: str) -> list[Path]:
    for name in names:
        os.replace(Path(workshop) / name, folder / name)
    return [folder / name for name in names]


def _openssl(folder: str | Path, *arguments: str) -> str:
    return _run(folder, ["openssl", *arguments])


def _run(folder: str | Path, command: list[str]) -> str:
    done = _done(command, folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise UserError(f"`{' '.join(command[:2])}` failed: {reason}")
    return done.stdout


def _done(command: list[str], folder: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise UserError(f"the program {command[0]} is missing: install the package {_PACKAGES[command[0]]}")
    # No standard input: a tool that asks for a passphrase fails at once and does not wait.
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

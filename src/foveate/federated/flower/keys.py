"""Make and check keys and certificates of a federation with `cryptography`, as the page on networks does with programs.

A folder holds, at the server, `ca.key` and `ca.crt` (an authority) and `server.key` and `server.pem` (the name by which
clients call the server, and 127.0.0.1, by which its own processes do); at client 3 `client3` and `client3.pub` (the
node's key, elliptic curve P-384 in OpenSSH's form), `runtime.key` and `runtime.pem` (for the port of its own processes)
and the server's `ca.crt`.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
RUNTIME, RUNTIME_KEY = "runtime.pem", "runtime.key"
LOOPBACK = "127.0.0.1"
"""Address by which the server's own processes, and a client's, reach their port."""
MAKE = "--make-keys"
# Every certificate is valid for a year; after that the same command makes new ones.
_VALID = timedelta(days=365)
_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only"
).split()
_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_P384 = "ecdsa-sha2-nistp384 "


def alternative_names(address: str) -> list[str]:
    """Names in the certificate of a server that clients reach by `address`."""
    # Its own processes use the loopback.
    return list(dict.fromkeys((address, LOOPBACK)))


def node_key(folder: Path, client: int) -> Path:
    """Path of the private key of a client's node."""
    return folder / f"client{client}"


def make_server_keys(folder: Path, address: str) -> list[Path]:
    """Make an authority and a server's certificate signed by it, whichever is missing; return the new files.

    Raises:
        UserError: both are there, or one without its key; the authority cannot be read; the address is no name.
    """
    paths = []
    if _is_missing(folder, CA, CA_KEY):
        key = _new_key("SECP256R1")
        certificate = _sign("our own authority", key, usages=("key_cert_sign", "crl_sign"))
        paths += _write(folder, {CA_KEY: _to_pem(key), CA: certificate})
    if _is_missing(folder, SERVER, SERVER_KEY):
        same_key(folder / CA, folder / CA_KEY)
        issuer, key = (_read(folder / CA), _read(folder / CA_KEY)), _new_key("SECP256R1")
        # X.509 allows 64 characters in the subject. TLS clients look at the alternative names only.
        certificate = _sign(address[:64], key, names=alternative_names(address), issuer=issuer)
        paths += _write(folder, {SERVER_KEY: _to_pem(key), SERVER: certificate})
    if not paths:
        raise UserError(f"{folder}: all keys and certificates exist already; nothing was made")
    return paths


def make_client_keys(folder: Path, client: int) -> list[Path]:
    """Make the key of a client's node, and the certificate of its runtime port if missing; return the new files.

    Raises:
        UserError: the key is there, or one file without its other.
    """
    path = node_key(folder, client)
    if not _is_missing(folder, path.name, f"{path.name}.pub"):
        raise UserError(f"{path}: exists already; nothing was made. Delete it first if it was lost or seen by others")
    key, forms = _new_key("SECP384R1"), _import("hazmat.primitives.serialization")
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    # Flower reads node keys in OpenSSH's form only.
    contents = {path.name: _to_pem(key, "OpenSSH"), f"{path.name}.pub": public + f" {path.name}\n".encode()}
    if _is_missing(folder, RUNTIME, RUNTIME_KEY):
        key, usages = _new_key("SECP256R1"), ("digital_signature", "key_cert_sign")
        certificate = _sign("this client", key, names=[LOOPBACK], usages=usages)
        contents |= {RUNTIME_KEY: _to_pem(key), RUNTIME: certificate}
    return _write(folder, contents)


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
    """Raise UserError, with the reason, unless the authority vouches for the certificate under that name."""
    x509, verification = _import("x509"), _import("x509.verification")
    # The defaults are those of public web servers: they refuse a certificate that vouches for itself (runtime.pem).
    anything = verification.ExtensionPolicy.permit_all()
    needs_flag = anything.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
    again = f"remove it and its key and make them again with {MAKE}"
    try:
        store = verification.Store(x509.load_pem_x509_certificates(authority.read_bytes()))
        policy = verification.PolicyBuilder().store(store).extension_policies(ca_policy=needs_flag, ee_policy=anything)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = policy.build_client_verifier().verify(leaf, []).subjects or []
    except (ValueError, verification.VerificationError) as error:
        # The first line: what follows is the certificate that the reason is about, which the message names.
        reason = str(error).partition(" (encountered")[0]
        raise UserError(f"{certificate} is not valid under {authority} ({reason}); {again}") from error
    # The verifier's own comparison knows no host with an underscore, such as those of containers.
    host, values = _parse_host(name), {_parse_host(str(value.value)) for value in names}
    if not {host, f"*.{str(host).partition('.')[2]}"} & values:
        raise UserError(f"{certificate} is not valid for '{name}' (its names: {', '.join(map(str, values))}); {again}")


def same_key(certificate: Path, key: Path) -> None:
    """Raise UserError if a private key is not that of a certificate, or one of the two cannot be read."""
    if _read(key).public_key() != _read(certificate).public_key():
        raise UserError(f"{key} is not the key of {certificate}; remove both and make them again with {MAKE}")


def _import(name: str) -> Any:
    """Import a module of cryptography, which only commands that make or check keys load."""
    try:
        return importlib.import_module(f"cryptography.{name}")
    except ModuleNotFoundError as error:
        reason = "keys and certificates need the package cryptography"
        raise UserError(f"{reason}; run `pip install 'foveate[flower]'`") from error


def _read(path: Path) -> Any:
    """Read a private key (a file that ends in .key) or a certificate."""
    forms, x509, content = _import("hazmat.primitives.serialization"), _import("x509"), path.read_bytes()
    try:
        # No passphrase: servers and nodes start unattended.
        is_key = path.suffix == ".key"
        return forms.load_pem_private_key(content, None) if is_key else x509.load_pem_x509_certificate(content)
    except (ValueError, TypeError, _import("exceptions").UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected PEM without a passphrase") from error


def _new_key(curve: str) -> Any:
    curves = _import("hazmat.primitives.asymmetric.ec")
    return curves.generate_private_key(getattr(curves, curve)())


def _to_pem(key: Any, form: str = "PKCS8") -> bytes:
    forms = _import("hazmat.primitives.serialization")
    return key.private_bytes(forms.Encoding.PEM, getattr(forms.PrivateFormat, form), forms.NoEncryption())


def _sign(
    subject: str,
    key: Any,
    *,
    names: Sequence[str] = (),
    usages: Collection[str] = (),
    issuer: tuple[Any, Any] | None = None,
) -> bytes:
    """A certificate in PEM.

    Args:
        issuer: certificate and key of the authority that signs; None = the certificate vouches for itself.
    """
    x509, start = _import("x509"), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    by, signer = (issuer[0].subject, issuer[1]) if issuer else (name, key)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    if issuer:
        for extension in issuer[0].extensions:
            # An authority that another program made may have an identifier of another kind.
            if isinstance(extension.value, x509.SubjectKeyIdentifier):
                authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
    # Python 3.13 refuses a certificate without its authority's identifier.
    extensions = [(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False), (authority, False)]
    if issuer is None:
        extensions.append((x509.BasicConstraints(ca=True, path_length=None), True))
    if usages:
        extensions.append((x509.KeyUsage(**{usage: usage in usages for usage in _USAGES}), True))
    if names:
        extensions.append((x509.SubjectAlternativeName([_to_name(name) for name in names]), False))
    builder = x509.CertificateBuilder(by, name, key.public_key(), x509.random_serial_number(), start, start + _VALID)
    for value, is_critical in extensions:
        builder = builder.add_extension(value, critical=is_critical)
    certificate = builder.sign(signer, _import("hazmat.primitives.hashes").SHA256())
    return certificate.public_bytes(_import("hazmat.primitives.serialization").Encoding.PEM)


def _to_name(host: str) -> Any:
    x509, value = _import("x509"), _parse_host(host)
    try:
        return x509.DNSName(value) if isinstance(value, str) else x509.IPAddress(value)
    except ValueError as error:
        raise UserError(f"address '{host}': not a name of DNS ({error})") from error


def _parse_host(host: str) -> Any:
    """Return an IP address, of which there are several spellings, or a name in lower case."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return host.lower()


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


def _write(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files, private keys for their owner only; a half-made key is never taken for a whole one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Inside the folder itself: `os.replace` is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as workshop:
        for name, content in contents.items():
            path = Path(workshop) / name
            path.touch(mode=0o600 if b"PRIVATE KEY" in content else 0o644)
            path.write_bytes(content)
        for name in contents:
            os.replace(Path(workshop) / name, folder / name)
    return [folder / name for name in contents]

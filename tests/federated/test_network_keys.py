"""Keys and certificates of a federation: what is made is good, and what is missing or wrong is named before a start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.flower import keys
from naming import raises_naming

# With Flower, which depends on it: `make test-flower`.
x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server and client 0 in one; tests read it only."""
    folder = tmp_path_factory.mktemp("keys")
    keys.make_server_keys(folder, "ward.example.org")
    keys.make_client_keys(folder, 0)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def test_what_is_made_is_good_and_the_owner_s_only(made: Path) -> None:
    keys.check_server(made, "ward.example.org", "0.0.0.0")
    keys.check_client(made, 0)
    keys.check_public_key(made / "client0.pub")
    assert sorted(path.name for path in made.iterdir()) == sorted(
        ["ca.key", "ca.crt", "server.key", "server.pem", "client0", "client0.pub", "runtime.key", "runtime.pem"]
    )
    for name in ("ca.key", "server.key", "client0", "runtime.key"):
        assert (made / name).stat().st_mode & 0o777 == 0o600, name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
def test_certificates_are_strict_enough_for_new_pythons(made: Path) -> None:
    for authority, certificate in (("ca.crt", "server.pem"), ("runtime.pem", "runtime.pem")):
        command = ["openssl", "verify", "-x509_strict", "-CAfile", authority, certificate]
        assert "OK" in subprocess.run(command, cwd=made, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("Ward.example.org", ["ward.example.org", IPv4Address("127.0.0.1")]),
        ("10.0.0.5", [IPv4Address("10.0.0.5"), IPv4Address("127.0.0.1")]),
        ("127.0.0.1", [IPv4Address("127.0.0.1")]),
        ("2001:DB8::1", [IPv6Address("2001:db8::1"), IPv4Address("127.0.0.1")]),
        ("node_7", ["node_7", IPv4Address("127.0.0.1")]),
    ],
)
def test_the_names_of_a_server(address: str, names: list[object], tmp_path: Path) -> None:
    keys.make_server_keys(tmp_path, address)
    keys.check_server(tmp_path, address, "0.0.0.0")
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [name.value for name in extension.value] == names
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)


def test_an_address_that_no_certificate_can_hold(tmp_path: Path) -> None:
    with raises_naming(UserError, "wärter.example.org"):
        keys.make_server_keys(tmp_path, "wärter.example.org")
    assert not (tmp_path / "server.pem").exists()


def test_an_expired_certificate(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keys, "_VALID", timedelta(seconds=1))
    keys.make_server_keys(tmp_path, "ward.example.org")
    time.sleep(2)
    with raises_naming(UserError, "server.pem", "not valid at validation time", "--make-keys"):
        keys.check_server(tmp_path, "ward.example.org", "0.0.0.0")


@pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("ssh-keygen") is None, reason="openssl or ssh-keygen is missing"
)
def test_folders_made_by_the_programs_of_the_page_are_opened(tmp_path: Path) -> None:
    """Earlier releases made all keys with these commands."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "federated-network.md"
    section = page.read_text(encoding="utf-8").partition("\n## Keys\n")[2].partition("\n## ")[0]
    for block in section.split("```bash\n")[1:]:
        subprocess.run(["sh", "-ec", block.partition("```")[0]], cwd=tmp_path, check=True, capture_output=True)
    keys.check_server(tmp_path, "server.example.org", "0.0.0.0")
    keys.check_client(tmp_path, 0)
    keys.check_public_key(tmp_path / "client0.pub")
    # A new certificate is signed by the authority that is there.
    for name in ("server.key", "server.pem"):
        (tmp_path / name).unlink()
    keys.make_server_keys(tmp_path, "new.example.org")
    keys.check_server(tmp_path, "new.example.org", "0.0.0.0")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is missing")
def test_ssh_finds_the_public_key_in_the_node_s(made: Path) -> None:
    command = ["ssh-keygen", "-y", "-f", str(made / "client0")]
    public = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (made / "client0.pub").read_text().split()[:2] == public.split()[:2]
    assert (made / "client0.pub").read_text().split()[2] == "client0"


def test_a_numbered_server_and_a_long_name(tmp_path: Path) -> None:
    long = ".".join(["ward"] * 16)
    for address in ("10.0.0.5", long):
        keys.make_server_keys(tmp_path / address, address)
        # Raises for a certificate that the address is not in, such as a name that was cut.
        keys.check_server(tmp_path / address, address, "127.0.0.1")
        with raises_naming(UserError, "other.example.org"):
            keys.check_server(tmp_path / address, "other.example.org", "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "host", "reason"),
    [
        ("other.example.org", "0.0.0.0", "not valid for 'other.example.org' .*--make-keys"),
        ("10.0.0.5", "0.0.0.0", "not valid for '10.0.0.5'"),
        ("ward.example.org", "10.0.0.5", "not valid for '10.0.0.5'"),
    ],
)
def test_an_address_that_is_not_in_the_certificate(made: Path, address: str, host: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        keys.check_server(made, address, host)


def test_another_authority_and_another_key(copied: Path, tmp_path: Path) -> None:
    keys.make_server_keys(tmp_path / "other", "ward.example.org")
    shutil.copy(tmp_path / "other" / "server.key", copied / "server.key")
    with raises_naming(UserError, "server.key", "server.pem"):
        keys.check_server(copied, "ward.example.org", "0.0.0.0")
    shutil.copy(tmp_path / "other" / "ca.crt", copied / "ca.crt")
    with raises_naming(UserError, "server.pem", "ca.crt"):
        keys.check_server(copied, "ward.example.org", "0.0.0.0")
    (copied / "ca.crt").write_text("no certificate")
    with raises_naming(UserError, "server.pem"):
        keys.check_server(copied, "ward.example.org", "0.0.0.0")


def test_what_is_missing_is_named(copied: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "ca.crt", "server.pem", "server.key", "--make-keys"):
        keys.check_server(tmp_path / "nowhere", "ward.example.org", "0.0.0.0")
    with raises_naming(UserError, "client1"):
        keys.check_client(copied, 1)
    (copied / "ca.crt").unlink()
    with pytest.raises(UserError, match="copy it from the server's folder"):
        keys.check_client(copied, 0)


@pytest.mark.parametrize("name", ["ca.key", "server.key", "client0", "runtime.key"])
def test_a_private_key_that_others_may_read(copied: Path, name: str) -> None:
    (copied / name).chmod(0o644)
    with raises_naming(UserError, str(copied / name), "644", "600"):
        keys.check_server(copied, "ward.example.org", "0.0.0.0")
        keys.check_client(copied, 0)


def test_a_node_key_in_another_form(copied: Path) -> None:
    shutil.copy(copied / "runtime.key", copied / "client0")
    with raises_naming(UserError, "OpenSSH's"):
        keys.check_client(copied, 0)


def test_what_is_no_public_key_of_a_node(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="private key"):
        keys.check_public_key(made / "client0")
    with pytest.raises(UserError, match="no such file"):
        keys.check_public_key(tmp_path / "client0.pub")
    (tmp_path / "rsa.pub").write_text("ssh-rsa AAAA")
    with raises_naming(UserError, "P-384"):
        keys.check_public_key(tmp_path / "rsa.pub")


def test_nothing_is_made_over_what_is_there(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(UserError, match="nothing was made"):
        keys.make_server_keys(copied, "ward.example.org")
    with raises_naming(UserError, "client0"):
        keys.make_client_keys(copied, 0)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    (copied / "ca.key").unlink()
    with raises_naming(UserError, "ca.crt", "ca.key"):
        keys.make_server_keys(copied, "ward.example.org")


def test_a_server_of_another_name_keeps_its_authority(copied: Path) -> None:
    """Clients have ca.crt: a new certificate must not cost them a new one."""
    authority = (copied / "ca.crt").read_bytes()
    for name in ("server.key", "server.pem"):
        (copied / name).unlink()
    assert [path.name for path in keys.make_server_keys(copied, "new.example.org")] == ["server.key", "server.pem"]
    assert (copied / "ca.crt").read_bytes() == authority
    keys.check_server(copied, "new.example.org", "0.0.0.0")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ec", None)
    with raises_naming(UserError, "cryptography", "foveate[flower]"):
        keys.make_client_keys(tmp_path / "client", 0)
    assert not (tmp_path / "client").exists()


def test_the_command_makes_keys(tmp_path: Path) -> None:
    def told(*arguments: str) -> dict[str, list[str]]:
        done = CliRunner().invoke(cli, ["federated", *arguments, "--make-keys", "--json"])
        assert done.exit_code == 0, done.output + repr(done.exception)
        return json.loads(done.stdout)

    folder = str(tmp_path / "both")
    made = told("server", "--folder", folder, "--address", "ward.example.org:8001")["made"]
    assert [Path(path).name for path in made] == ["ca.key", "ca.crt", "server.key", "server.pem"]
    made = told("client", "--folder", folder, "--client", "2")["made"]
    assert [Path(path).name for path in made] == ["client2", "client2.pub", "runtime.key", "runtime.pem"]
    keys.check_server(tmp_path / "both", "ward.example.org", "0.0.0.0")
    keys.check_client(tmp_path / "both", 2)

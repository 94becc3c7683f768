"""Certificates made by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIGURATION = """
[ca]
default_ca = own
[own]
dir = {folder}
database = $dir/index.txt
serial = $dir/serial
new_certs_dir = $dir
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = {names}
basicConstraints = CA:true
[req]
distinguished_name = name
[name]
"""


def make_certificate(folder: Path, *, names: str, ends_in: timedelta) -> Path:
    """A certificate signed by itself.

    Args:
        folder: where to make it; made too.
        names: what it is for, such as "IP:127.0.0.1".
        ends_in: how long from now it is valid; it began two days before its end.

    Returns:
        A file with the key and the certificate.
    """
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder.mkdir()
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01\n")
    configuration = folder / "openssl.cnf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, names=names))
    end = datetime.now(UTC) + ends_in
    begin = end - timedelta(days=2)
    curve = "ec_paramgen_curve:prime256v1"
    key, request, certificate = (folder / name for name in ("key", "request", "certificate"))
    made = ["req", "-new", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-subj", "/CN=test"]
    signed = ["ca", "-batch", "-selfsign", "-notext", "-keyfile", str(key), "-in", str(request)]
    dates = ["-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"]
    for arguments in (
        [*made, "-keyout", str(key), "-out", str(request)],
        [*signed, *dates, "-out", str(certificate)],
    ):
        command = ["openssl", *arguments, "-config", str(configuration)]
        subprocess.run(command, check=True, capture_output=True)
    both = folder / "both"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


def server_context(certificate: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS with what `make_certificate` made."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context

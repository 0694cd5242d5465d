"""Certificates that nobody signed, made by the openssl program."""

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(
    folder: Path,
    name: str,
    extension: str = "subjectAltName=DNS:localhost",
    days: int = 2,
    curve: str = "prime256v1",
) -> None:
    """name.pem and name.key in the folder, for localhost; what ends in days < 0 has expired."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program makes this test's certificates")
    key, file = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", extension, "-keyout", key, "-out", file],
        check=True, capture_output=True,
    )  # fmt: skip
    if days != 2:
        again = ["openssl", "x509", "-in", file, "-signkey", key, "-days", str(days), "-out", file]
        subprocess.run(again, check=True, capture_output=True)

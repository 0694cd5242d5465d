"""A hostile guest, and with it a daemon built with the sanitisers, or the one that is installed."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.native.build import CSRC, ENVIRONMENT, NoSanitizer, Toolchain

HERE = Path(__file__).parent
STACK = CSRC / "stack"
GUEST = ("guest", "events", "messages", "region")
DAEMON = (
    *("daemon", "attach_socket", "options", "tenant", "connecting", "shares", "messages", "region"),
    *("socket_link", "emulated_link", "tls_link"),
)
FLAGS = ("-std=c++20", "-O0", "-g1", f"-I{STACK}", "-fno-sanitize-recover=all")
SANITIZE = ("-fsanitize=address,undefined",)
TLS = ("-DSPECEDGE_TLS",), ("-lssl", "-lcrypto")

__all__ = ["ENVIRONMENT", "NoSanitizer", "build", "build_hostile"]


def build_hostile(folder: Path, compiler: str) -> Path:
    """The hostile guest as it is, in a folder."""
    target, sources = folder / "hostile", [STACK / f"{name}.cpp" for name in GUEST]
    command = [compiler, "-std=c++20", "-O0", f"-I{STACK}", *sources, HERE / "hostile.cpp"]
    subprocess.run([*command, "-o", target], check=True)
    return target


def build(folder: Path, compiler: str) -> tuple[Path, Path]:
    """The daemon and the hostile guest, sanitised, in a folder. Raises NoSanitizer."""
    if not Toolchain(compiler, FLAGS + SANITIZE).links(folder, "int main() {}"):
        raise NoSanitizer(f"{compiler} does not link the address sanitiser")
    probe = folder / "openssl.cpp"
    probe.write_text("#include <openssl/ssl.h>\nint main() { return !TLS_method(); }\n")
    command = [compiler, *FLAGS, probe, "-o", folder / "openssl", *TLS[1]]
    has_tls = not subprocess.run(command, capture_output=True, check=False).returncode
    defined, libraries = TLS if has_tls else ((), ())
    sources = {STACK / f"{name}.cpp" for name in (*GUEST, *DAEMON)} | {HERE / "hostile.cpp"}
    toolchain = Toolchain(compiler, (*FLAGS, *SANITIZE, *defined))
    with ThreadPoolExecutor(2) as pool:
        objects = dict(
            zip(sources, pool.map(lambda source: toolchain.compile(folder, source), sources),
                strict=True)
        )  # fmt: skip
    linked = []
    for name, parts in (("specedge-stack", DAEMON), ("hostile", GUEST)):
        made = [objects[STACK / f"{part}.cpp"] for part in parts]
        made += [objects[HERE / "hostile.cpp"]] * (name == "hostile")
        target = folder / name
        command = [compiler, *FLAGS, *SANITIZE, *made, "-o", target, *libraries]
        subprocess.run(command, check=True)
        linked.append(target)
    return linked[0], linked[1]

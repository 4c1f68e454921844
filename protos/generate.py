"""Generate the committed stubs of the contract.

The generator's packages are installed into a folder of their own: beside the project's packages
they would pull protobuf down to their own version. Stubs made by these versions are the same on
Python 3.11 to 3.13 and import on the newest runtimes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PACKAGE = Path("exitlab/v1")  # below PROTOS; Python imports the stubs as exitlab.v1
STUB_GLOBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
TOOLS = (
    "grpcio-tools==1.71.2",
    "grpcio==1.71.2",
    "mypy-protobuf==3.6.0",
    "protobuf==5.29.5",
    "setuptools<81",  # grpcio-tools imports pkg_resources, which 81 drops
    "types-protobuf",
)


def install_tools(folder: Path) -> None:
    """Install the generator's packages into ``folder``, unless that has been done."""
    marker = folder / "installed.txt"
    wanted = "\n".join([sys.version, *TOOLS])
    if marker.is_file() and marker.read_text() == wanted:
        return
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise SystemExit(f"{folder}: is not empty and was not made by this script")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", str(folder), *TOOLS], check=True)
    marker.write_text(wanted)


def run_protoc(tools: Path, into: Path) -> None:
    """Write the stubs of every proto file below ``into``."""
    protos = sorted(PROTOS.joinpath(PACKAGE).glob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{into}" for kind in ("mypy", "mypy_grpc")]
    plugins = [f"--plugin=protoc-gen-{name}={tools}/bin/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")]
    subprocess.run(
        [
            *[sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *outputs, *plugins],
            *[str(proto.relative_to(PROTOS)) for proto in protos],
        ],
        env={**os.environ, "PYTHONPATH": str(tools)},
        cwd=PROTOS,
        check=True,
    )
    for proto in protos:
        if not any(line.startswith("service ") for line in proto.read_text().splitlines()):
            for stub in into.joinpath(PACKAGE).glob(f"{proto.stem}_pb2_grpc.py*"):
                stub.unlink()  # holds nothing but imports


def replace_stubs(made: Path, into: Path) -> None:
    """Put the stubs of ``made`` in place of all that ``into`` holds."""
    target = into / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    for glob in STUB_GLOBS:
        for stale in target.glob(glob):
            stale.unlink()
        for stub in made.joinpath(PACKAGE).glob(glob):
            shutil.copyfile(stub, target / stub.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Generate the committed stubs of the contract.")
    parser.add_argument("--into", type=Path, default=PROTOS, help="root of the stubs (default: %(default)s)")
    parser.add_argument("--tools", type=Path, help="keep the generator's packages here (default: nowhere)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        tools = options.tools.resolve() if options.tools else Path(scratch, "tools")
        install_tools(tools)
        made = Path(scratch, "made")
        made.mkdir()
        run_protoc(tools, made)
        replace_stubs(made, options.into)


if __name__ == "__main__":
    main()

"""v1 of the contract as it is frozen in ``v1.binpb``, and buf, which compares the contract with that."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool

HERE: Final = Path(__file__).parent
PROTOS: Final = HERE.parents[1] / "protos"
IMAGE: Final = HERE / "v1.binpb"


def buf(*arguments: str, protos: Path = PROTOS) -> "subprocess.CompletedProcess[bytes]":
    """Run the buf of this environment on proto files."""
    program = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert program is not None, "buf is not installed beside this Python: it is the package buf-bin"
    return subprocess.run([program, *arguments], cwd=protos, capture_output=True, check=False)


def breaking_changes(protos: Path = PROTOS, image: Path = IMAGE) -> list[str]:
    """Return what would break a peer of the frozen contract, each with its file and line."""
    done = buf("breaking", "--against", str(image), protos=protos)
    assert not done.stderr, done.stderr.decode()
    return done.stdout.decode().splitlines()


def built_image(protos: Path = PROTOS) -> bytes:
    """Return the image of proto files: the contract without its comments."""
    return _built("--exclude-source-info", protos=protos)


def described_files(protos: Path = PROTOS) -> list[descriptor_pb2.FileDescriptorProto]:
    """Return the descriptors of proto files, with their comments."""
    data = _built("--as-file-descriptor-set", protos=protos)
    return list(descriptor_pb2.FileDescriptorSet.FromString(data).file)


def frozen_files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Return the frozen descriptors, each after those that it imports."""
    return list(descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes()).file)


def pool_of(files: list[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    """Return a pool that holds these files and no others."""
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    return pool


def _built(*options: str, protos: Path) -> bytes:
    done = buf("build", *options, "-o", "-#format=binpb", protos=protos)
    assert not done.returncode, done.stderr.decode()
    return done.stdout

"""A server in a process of its own, whose log and memory can be looked at."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from exitlab.v1 import hypervisor_pb2_grpc

SECONDS: Final = 60.0  # no call takes this long unless it hangs; the first start may compile the engine
LARGE: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
Stub = hypervisor_pb2_grpc.HypervisorServiceStub


class Served:
    """A server with the installed engine, for as long as the ``with``."""

    def __init__(self, folder: Path, *flags: str, listen: str = "127.0.0.1:0") -> None:
        """Start it, and wait until it listens."""
        self._log = folder / "log"
        command = [sys.executable, "-m", "hypervisor_svc", "serve", "--listen", listen]
        command += ["--log-format", "json", *flags]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            self._process.kill()
            raise RuntimeError(f"no server: {self._log.read_text()}")
        self.address = line.removeprefix("listening on ").strip()

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain it; one that does not end is killed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def is_up(self) -> bool:
        """Whether the process is there still."""
        return self._process.poll() is None

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of its log, without those that gRPC may write beside them."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def faults(self) -> list[dict[str, Any]]:
        """Return what it logged of broken promises of its own."""
        is_bad = {"error", "critical"}
        return [line for line in self.logged() if line["event"] == "fault" or line.get("level") in is_bad]

    def resident_bytes(self) -> int:
        """Return the memory that it has resident now."""
        return self._memory("VmRSS")

    def peak_bytes(self) -> int:
        """Return the most memory that it had resident since the last ``forget_peak``."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        """Start the peak anew, from what is resident now."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5", encoding="ascii")

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """Return how many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def _memory(self, name: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"the system does not tell {name}")

"""Where runs find their hypervisor: at the service's address, at one of theirs, or the private one."""

from dataclasses import asdict

from exitlab.v1 import guest_pb2
from guest_svc.service.asked import check_hypervisor
from guest_svc.service.frames import Job
from guest_svc.service.private import PrivateHypervisor
from guest_svc.tls import Tls


class Hypervisors:
    """The hypervisors of a service's runs."""

    def __init__(
        self,
        own: str | PrivateHypervisor,
        tls: Tls | None = None,
        retry_seconds: float = 0.0,
        *,
        may_be_any: bool,
    ) -> None:
        """Take the service's ``own``, by its address or a private one.

        A run looks ``retry_seconds`` for one that is gone. ``may_be_any`` says whether it may name another.
        """
        self._own = own
        self._tls = tls
        self._retry_seconds = retry_seconds
        self._may_be_any = may_be_any

    async def job(self, config: guest_pb2.RunConfig) -> Job:
        """Return the job of a run.

        Raises: InvalidRequest, PermissionDenied, Unavailable.
        """
        asked, own = config.hypervisor_address, self._own
        if not asked and isinstance(own, PrivateHypervisor):
            return Job(config, await own.address())  # and if it ends it does not come back
        address = own if isinstance(own, str) else ""
        check_hypervisor(asked, address, may_be_any=self._may_be_any)
        tls = None if self._tls is None else asdict(self._tls)
        return Job(config, asked or address, tls, self._retry_seconds)

    async def ready(self) -> None:
        """Wait until the private one listens.

        Raises: Unavailable.
        """
        if isinstance(self._own, PrivateHypervisor):
            await self._own.address()

    async def close(self) -> None:
        """End the private one."""
        if isinstance(self._own, PrivateHypervisor):
            await self._own.close()

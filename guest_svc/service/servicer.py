"""GuestService over gRPC; what each call does is said in the contract."""

# ruff: noqa: N802  (the contract names the methods)
import asyncio
import contextlib
import re
from itertools import islice
from typing import Final

from exitlab.serving.answers import Context, answers
from exitlab.serving.calls import Calls, within
from exitlab.serving.identity import NOBODY, owner_of
from exitlab.serving.refusals import InvalidRequest
from exitlab.v1 import guest_pb2
from guest_svc.service.asked import check_request
from guest_svc.service.listing import Listing
from guest_svc.service.runs import Runs

DEFAULT_INTERVAL_MS: Final = 1000
MIN_INTERVAL_MS: Final = 10
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
SILENT_SECONDS: Final = 60.0  # in which a watcher has to read
PAGE_TOKEN: Final = re.compile("[0-9]{0,20}")


class GuestServicer:
    """The service. Its methods are those of the contract."""

    def __init__(self, runs: Runs) -> None:
        """Serve these runs."""
        self.runs = runs
        self.calls = Calls()
        self._listing = Listing()

    @answers
    async def ListWorkloads(
        self, _request: guest_pb2.ListWorkloadsRequest, _context: Context
    ) -> guest_pb2.ListWorkloadsResponse:
        """List the workloads."""
        return guest_pb2.ListWorkloadsResponse(workloads=await self._listing.workloads())

    @answers
    async def StartRun(
        self, request: guest_pb2.StartRunRequest, context: Context
    ) -> guest_pb2.StartRunResponse:
        """Start a run, or return the one that this request id started."""
        owner = owner_of(context)
        check_request(request)
        run = await self.runs.start(request, owner)
        return guest_pb2.StartRunResponse(status=run.status)

    @answers
    async def WatchRun(self, request: guest_pb2.WatchRunRequest, context: Context) -> None:
        """Stream where a run stands now, in each interval, and at its end, then with its result."""
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if interval_ms < MIN_INTERVAL_MS:
            message = f"{interval_ms} ms, but the shortest is {MIN_INTERVAL_MS} ms"
            raise InvalidRequest("INTERVAL_TOO_SHORT", message, field="interval_ms")
        run = self.runs.find(request.run_id, owner_of(context))
        with self.runs.watched(run):
            while True:
                has_ended = run.ended.is_set()
                await within(SILENT_SECONDS, context.write(run.response()), "read nothing")
                if has_ended:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(run.ended.wait(), interval_ms / 1000)

    @answers
    async def StopRun(self, request: guest_pb2.StopRunRequest, context: Context) -> guest_pb2.StopRunResponse:
        """Stop a run, and return where it stands once it has ended."""
        run = self.runs.find(request.run_id, owner_of(context))
        if not run.ended.is_set():
            run.stop()
            await run.ended.wait()
        return guest_pb2.StopRunResponse(status=run.status)

    @answers
    async def ListRuns(
        self, request: guest_pb2.ListRunsRequest, context: Context
    ) -> guest_pb2.ListRunsResponse:
        """List the caller's runs; of a caller without an identity, without their sessions.

        There a session's id gives access to it, whoever has it.
        """
        if not PAGE_TOKEN.fullmatch(request.page_token):
            raise InvalidRequest("BAD_PAGE_TOKEN", "no page token of this service", field="page_token")
        page = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        owner = owner_of(context)
        before = int(request.page_token) if request.page_token else None
        found = list(islice(self.runs.newest(before, owner), page + 1))
        response = guest_pb2.ListRunsResponse(runs=[run.status for run in found[:page]])
        if owner == NOBODY:
            for status in response.runs:
                status.ClearField("session_id")
        if len(found) > page:
            response.next_page_token = str(found[page - 1].number)
        return response

"""HypervisorService over gRPC.

Engine work is done in threads, as many as there are cores, since the compiled loops let go of the
interpreter. What a refusal of the layers below becomes is in ``exitlab.serving.answers``.
"""

# ruff: noqa: N802  (the contract names the methods)
import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from exitlab.serving.answers import Context, Result, answers
from exitlab.serving.calls import Calls, within
from exitlab.serving.identity import NOBODY, owner_of
from exitlab.serving.logs import bound, log
from exitlab.serving.refusals import (
    RETRY_AFTER_MS,
    InvalidRequest,
    NotFound,
    Refused,
    Unavailable,
)
from exitlab.v1 import hypervisor_pb2, report_pb2
from hypervisor_svc.calls import LongCalls
from hypervisor_svc.commits import Commits
from hypervisor_svc.config import check_config, check_vendor, resolved
from hypervisor_svc.journal import Start
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.policies import NoSuchVendor, UnknownPolicy
from hypervisor_svc.policies.base import PolicyError
from hypervisor_svc.recovery import recovered
from hypervisor_svc.registry import Ending, Registry, Wanted
from hypervisor_svc.session import FINISHED, Session
from hypervisor_svc.store import Store
from hypervisor_svc.stream import EventStream

DEFAULT_INTERVAL_MS: Final = 1000
MIN_INTERVAL_MS: Final = 10
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_PRICE_LISTS: Final = 64
PAGE_TOKEN: Final = re.compile("[0-9]{0,20}")


class HypervisorServicer:
    """The service. Its methods are those of the contract, which says what each does."""

    def __init__(self, parts: Parts, limits: ServerLimits, store: Store | None = None) -> None:
        """Hold the sessions of a store, or none yet.

        Raises:
            CannotServe: the store cannot be read.

        """
        self.parts = parts
        self.limits = limits
        self.incarnation = secrets.token_hex(8)
        self.is_draining = False
        self.calls = Calls()
        self._streams: set[EventStream] = set()
        self._long_calls = LongCalls(limits)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="engine")
        self._store = store
        self.commits = Commits(store, limits, self.in_thread) if store is not None else None
        self.registry = (
            Registry(limits, engine_fingerprint=parts.engine_fingerprint)
            if store is None
            else recovered(store, parts, limits, self._threads.submit)
        )

    async def in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do engine work in a thread. Work that has begun goes on to its end even if nobody waits."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def drain(self) -> None:
        """Take no new sessions and streams, and end the open ones after the block in hand."""
        self.is_draining = True
        for stream in self._streams:
            stream.end(Ending.DRAINING)
        for held in self.registry.after(0, owner=None):
            held.ended.set()

    async def commit_all(self) -> bool:
        """Commit what sessions have that could not be stored before; tell whether all is stored now."""
        is_stored = True
        if self.commits is None:
            return is_stored  # as safe as it gets
        for held in self.registry.after(0, owner=None):
            try:
                await self.commits.commit(held)
            except Refused:  # which is logged
                is_stored = False
        return is_stored

    def refuse_if_draining(self) -> None:
        """Refuse what would not come to an end."""
        if self.is_draining:
            message = "the server is about to stop"
            raise Unavailable("DRAINING", message, retry_after_ms=RETRY_AFTER_MS)

    @answers
    async def CreateSession(
        self, request: hypervisor_pb2.CreateSessionRequest, context: Context
    ) -> hypervisor_pb2.CreateSessionResponse:
        """Create a session, or return the one that this request id created."""
        self.refuse_if_draining()
        held = await self.registry.create(request, self._make_session, owner_of(context))
        return hypervisor_pb2.CreateSessionResponse(
            session_id=held.session.session_id,
            limits=self.limits.to_proto(),
            engine_fingerprint=held.engine_fingerprint,
            server_incarnation=self.incarnation,
        )

    async def _make_session(self, wanted: Wanted) -> Session:
        config = wanted.request.config

        def make() -> Session:
            check_config(config, self.limits, self.parts.policy_table, self.parts.check_table)
            runs = config
            if self._store is not None:
                runs = resolved(config, self.parts.policy_table)
                self._store.create(Start(*wanted, runs, self.parts.engine_fingerprint))
            make_engine = partial(self.parts.make_engine, runs)
            return Session(wanted.session_id, config, make_engine, self.limits, self._store)

        session = await self.in_thread(make)
        with bound(session=wanted.session_id):
            log.info("created", label=config.label, lanes=len(config.lanes), vcpus=config.vcpus)
        return session

    @answers
    async def StreamEvents(self, _requests: object, context: Context) -> None:
        """Carry a stream, in raw bytes: see ``drain.add_to_server``."""
        owner = owner_of(context)
        stream = EventStream(self, context, owner)
        with self._long_calls.counted(owner):
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

    @answers
    async def GetSession(
        self, request: hypervisor_pb2.GetSessionRequest, context: Context
    ) -> hypervisor_pb2.GetSessionResponse:
        """Return where a session stands."""
        held = self.registry.find(request.session_id, owner=owner_of(context))
        status = await held.call(self.in_thread, held.session.status)
        limits = self.limits.to_proto()
        return hypervisor_pb2.GetSessionResponse(
            status=status,
            config=held.session.config,
            limits=limits,
            engine_fingerprint=held.engine_fingerprint,
        )

    @answers
    async def FinishSession(
        self, request: hypervisor_pb2.FinishSessionRequest, context: Context
    ) -> hypervisor_pb2.FinishSessionResponse:
        """End a session and return its report; then the stored one."""
        held = self.registry.find(request.session_id, owner=owner_of(context))
        finish = held.session.finish
        report = await held.call(self.in_thread, finish, request.event_count, tuple(request.column_crcs))
        if held.stream is not None:
            held.stream.end(Ending.FINISHED)
        self.registry.drop_ended(held.owner)
        log.info("finished", events=request.event_count, report_bytes=len(report))
        return hypervisor_pb2.FinishSessionResponse(report=report)

    @answers
    async def GetReport(
        self, request: hypervisor_pb2.GetReportRequest, context: Context
    ) -> hypervisor_pb2.GetReportResponse:
        """Return a finished session's report, priced."""
        held = self.registry.find(request.session_id, owner=owner_of(context))
        if len(request.prices) > MAX_PRICE_LISTS:
            message = f"{len(request.prices)} price lists, but at most {MAX_PRICE_LISTS} are priced at once"
            raise InvalidRequest("TOO_MANY_PRICES", message, field="prices")
        stored = await held.call(self.in_thread, held.session.report)

        def priced() -> hypervisor_pb2.GetReportResponse:
            lists = [self._price_list(choice, f"prices[{i}]") for i, choice in enumerate(request.prices)]
            report = report_pb2.Report.FromString(stored)
            figures = [lane for prices in lists for lane in self.parts.figures(report, prices)]
            runs = held.session.lane_runs
            return hypervisor_pb2.GetReportResponse(report=stored, figures=figures, lane_runs=runs)

        return await self.in_thread(priced)

    def _price_list(self, choice: hypervisor_pb2.PriceChoice, path: str) -> report_pb2.PriceList:
        """Return the chosen price list, checked."""
        match choice.WhichOneof("choice"):
            case "name":
                try:
                    return self.parts.price_list(choice.name)
                except LookupError as error:
                    raise InvalidRequest("UNKNOWN_PRICES", str(error), field=f"{path}.name") from error
            case "list":
                try:
                    self.parts.check_prices(choice.list)
                except ValueError as error:
                    raise InvalidRequest("BAD_PRICES", str(error), field=f"{path}.list") from error
                return choice.list
            case _:
                raise InvalidRequest("PRICES_MISSING", "neither a name nor a list", field=path)

    @answers
    async def WatchReport(self, request: hypervisor_pb2.WatchReportRequest, context: Context) -> None:
        """Stream a session's report now, in each interval, and once more when it is finished."""
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if interval_ms < MIN_INTERVAL_MS:
            message = f"{interval_ms} ms, but the shortest is {MIN_INTERVAL_MS} ms"
            raise InvalidRequest("INTERVAL_TOO_SHORT", message, field="interval_ms")
        with self._long_calls.counted(owner_of(context)):
            await self._watch(request.session_id, interval_ms, context)

    async def _watch(self, session_id: str, interval_ms: int, context: Context) -> None:
        while True:
            held = self.registry.find(session_id, owner=owner_of(context))
            response = await held.call(self.in_thread, _watched, held.session)
            await within(self.limits.idle_seconds, context.write(response), "read nothing")
            if response.status.state == FINISHED:
                return
            self.refuse_if_draining()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.ended.wait(), interval_ms / 1000)

    @answers
    async def ListSessions(
        self, request: hypervisor_pb2.ListSessionsRequest, context: Context
    ) -> hypervisor_pb2.ListSessionsResponse:
        """List the caller's sessions; without their ids if he has no identity, as an id gives access."""
        if not PAGE_TOKEN.fullmatch(request.page_token):
            raise InvalidRequest("BAD_PAGE_TOKEN", "no page token of this server", field="page_token")
        page = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        owner = owner_of(context)
        found = self.registry.after(int(request.page_token or "0"), owner)
        response = hypervisor_pb2.ListSessionsResponse()
        for held in found[:page]:
            status = await held.call(self.in_thread, partial(held.session.status, has_digest=False))
            if owner == NOBODY:
                status.ClearField("session_id")
            response.sessions.append(status)
        if len(found) > page:
            response.next_page_token = str(found[page - 1].number)
        return response

    @answers
    async def ListPolicies(
        self, _request: hypervisor_pb2.ListPoliciesRequest, _context: Context
    ) -> hypervisor_pb2.ListPoliciesResponse:
        """List the policies."""
        summaries = await self.in_thread(self.parts.policy_summaries)
        return hypervisor_pb2.ListPoliciesResponse(policies=summaries)

    @answers
    async def DescribePolicy(
        self, request: hypervisor_pb2.DescribePolicyRequest, _context: Context
    ) -> hypervisor_pb2.DescribePolicyResponse:
        """Return a policy's table."""
        check_vendor(request.vendor, "vendor")
        try:
            table = await self.in_thread(
                self.parts.policy_table, request.name, request.vendor, request.features
            )
        except NoSuchVendor as error:
            raise NotFound("NO_SUCH_VENDOR", str(error), field="vendor") from error
        except UnknownPolicy as error:
            raise NotFound("UNKNOWN_POLICY", str(error), field="name") from error
        except PolicyError as error:
            raise InvalidRequest("BAD_POLICY", str(error), field="name") from error
        return hypervisor_pb2.DescribePolicyResponse(table=table)

    @answers
    async def ListPrices(
        self, _request: hypervisor_pb2.ListPricesRequest, _context: Context
    ) -> hypervisor_pb2.ListPricesResponse:
        """List the price lists."""
        lists = await self.in_thread(self.parts.price_lists)
        return hypervisor_pb2.ListPricesResponse(price_lists=lists.values())


def _watched(session: Session) -> hypervisor_pb2.WatchReportResponse:
    return hypervisor_pb2.WatchReportResponse(status=session.status(), report=session.running_report())

"""HypervisorService over gRPC.

Every refusal of the layers below becomes a status with google.rpc details here. Engine work is done
in threads, as many as there are cores, since the compiled loops let go of the interpreter.
"""

# ruff: noqa: N802  (the contract names the methods)
import asyncio
import contextlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.v1 import hypervisor_pb2, report_pb2
from hypervisor_svc.commits import Commits
from hypervisor_svc.config import check_config, check_vendor, resolved
from hypervisor_svc.errors import (
    RETRY_AFTER_MS,
    InvalidRequest,
    LimitReached,
    NotFound,
    OurFault,
    Refused,
    Unavailable,
    WrongState,
)
from hypervisor_svc.identity import NOBODY, owner_of
from hypervisor_svc.journal import Start, Stored
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.logs import bound, log
from hypervisor_svc.parts import Parts
from hypervisor_svc.policies import NoSuchVendor, UnknownPolicy
from hypervisor_svc.policies.base import PolicyError
from hypervisor_svc.registry import Ending, Registry, Wanted
from hypervisor_svc.session import FINISHED, Session
from hypervisor_svc.store import Store
from hypervisor_svc.stream import EventStream, within

ERROR_DOMAIN: Final = "exitlab"
DEFAULT_INTERVAL_MS: Final = 1000
MIN_INTERVAL_MS: Final = 10
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_PRICE_LISTS: Final = 64
PAGE_TOKEN: Final = re.compile("[0-9]{0,20}")
MAX_TEXT_BYTES: Final = 600  # of a refusal: gRPC drops a status with all its details if they pass 8 KiB

Context = Any  # grpc.aio.ServicerContext; its generic stub cannot say "bytes on one method"
Result = TypeVar("Result")
Method = Callable[[Any, Any, Context], Awaitable[Result]]


def to_status(refusal: Refused) -> grpc.Status:
    """Return what a client gets of a refusal: code, message, ErrorInfo and, with a field, BadRequest."""
    place = {key: str(value) for key, value in refusal.place.items()}
    said = _shortened(refusal.message)
    status = status_pb2.Status(code=grpc.StatusCode[refusal.code].value[0], message=said)
    if "event" in place:
        status.message = f"event {place['event']}: {said}"
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=ERROR_DOMAIN, metadata=place)
    status.details.add().Pack(info)
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.field, description=said, reason=refusal.reason
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return rpc_status.to_status(status)


def _shortened(text: str) -> str:
    """Return a text without its middle if it is long: it may hold what a client sent."""
    data, gap = text.encode(), " ... "
    if len(data) <= MAX_TEXT_BYTES:
        return text
    half = (MAX_TEXT_BYTES - len(gap)) // 2
    return data[:half].decode(errors="ignore") + gap + data[-half:].decode(errors="ignore")


def answers(method: Method[Result]) -> Method[Result]:
    """Wrap a handler: its lines are logged with peer and session, its refusals become statuses."""

    @wraps(method)
    async def handler(self: Any, request: Any, context: Context) -> Result:
        with self.calls, bound(peer=context.peer(), session_id=getattr(request, "session_id", "")):
            try:
                if isinstance(request, Refused):  # see drain.add_to_server
                    raise request
                return await method(self, request, context)
            except OurFault as fault:
                log.exception("fault", method=method.__name__)
                refusal: Refused = fault
            except Refused as refused:
                log.info("refused", method=method.__name__, code=refused.code, reason=refused.reason)
                refusal = refused
            except (grpc.aio.BaseError, grpc.RpcError):
                raise  # the connection's, not ours
            except Exception:
                log.exception("fault", method=method.__name__)
                refusal = OurFault("INTERNAL_ERROR", "a fault of the hypervisor; its log says more")
            await context.abort_with_status(to_status(refusal))
            raise AssertionError("abort returned")

    return handler


class Calls:
    """Counts the calls that are being answered, so that somebody can wait until there are none."""

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0
        self.none = asyncio.Event()
        self.none.set()

    def __enter__(self) -> None:
        """Count a call."""
        self._count += 1
        self.none.clear()

    def __exit__(self, *_: object) -> None:
        """Count it off."""
        self._count -= 1
        if not self._count:
            self.none.set()


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
        self._open_calls: Counter[str] = Counter()  # streams and watchers, by owner
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="engine")
        self._store = store
        self.commits = Commits(store, limits, self.in_thread) if store is not None else None
        self.registry = (
            Registry(limits, engine_fingerprint=parts.engine_fingerprint)
            if store is None
            else self._stored_sessions(store)
        )

    def _stored_sessions(self, store: Store) -> Registry:
        """Return a registry with all that a store has."""

        def delete(session_ids: list[str]) -> None:
            try:
                store.delete(session_ids)
            except Unavailable as error:  # they are back after a restart, and idle then
                log.error("not forgotten", sessions=len(session_ids), why=error.message)

        def forget(session_ids: list[str]) -> None:
            self._threads.submit(delete, session_ids)

        def tell_damage(number: int) -> None:
            log.error("a stored session is damaged and left out", number=number)

        found = store.load(tell_damage)
        registry = Registry(
            self.limits,
            last_number=store.last_number,
            engine_fingerprint=self.parts.engine_fingerprint,
            on_drop=forget,
        )
        for stored in found:
            start, session = stored.start, self._restored(stored, store)
            whose = start.number, start.owner, start.request
            registry.adopt(session, *whose, stored.age_seconds, start.engine_fingerprint)
        return registry

    def _restored(self, stored: Stored, store: Store) -> Session:
        start = stored.start
        make_engine = partial(self.parts.make_engine, start.resolved)
        session = Session.restored(stored, make_engine, self.limits, store)
        ours, theirs = self.parts.engine_fingerprint, start.engine_fingerprint
        if session.can_go_on and ours != theirs:
            message = f"the session began under {theirs}, and this server has {ours}; start a new session"
            session.fail(WrongState("ENGINE_CHANGED", message))
        return session

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
        with bound(session_id=wanted.session_id):
            log.info("created", label=config.label, lanes=len(config.lanes), vcpus=config.vcpus)
        return session

    @answers
    async def StreamEvents(self, _requests: object, context: Context) -> None:
        """Carry a stream, in raw bytes: see ``drain.add_to_server``."""
        owner = owner_of(context)
        stream = EventStream(self, context, owner)
        with self._counted(owner):
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

    @contextlib.contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        """Count a stream, or a watcher, which holds as much; refuse one more than there may be.

        One owner has no use for more than he may have sessions, and others shall find room too.
        """
        count, own = self._open_calls.total(), self._open_calls[owner]
        if count >= self.limits.max_streams:
            message = f"{count} streams are open, and no more are allowed"
            raise LimitReached("TOO_MANY_STREAMS", message, max_streams=self.limits.max_streams)
        if owner != NOBODY and own >= self.limits.max_sessions:
            message = f"{own} streams of yours are open, as many as you may have sessions"
            raise LimitReached("TOO_MANY_STREAMS", message, max_sessions=self.limits.max_sessions)
        self._open_calls[owner] += 1
        try:
            yield
        finally:
            self._open_calls[owner] -= 1
            if not self._open_calls[owner]:
                del self._open_calls[owner]

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
        with self._counted(owner_of(context)):
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

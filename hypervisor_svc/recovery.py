"""The sessions of a state directory, held again by a server that starts."""

from collections.abc import Callable
from functools import partial

from exitlab.serving.logs import log
from exitlab.serving.refusals import Unavailable, WrongState
from hypervisor_svc.journal import Stored
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.registry import Registry
from hypervisor_svc.session import Session
from hypervisor_svc.store import Store


def recovered(
    store: Store, parts: Parts, limits: ServerLimits, submit: Callable[[Callable[[], None]], object]
) -> Registry:
    """Return a registry that holds all that a store has, and forgets there what it drops.

    ``submit`` has work done in a thread, which nobody waits for.

    Raises:
        CannotServe: the store cannot be read.

    """

    def delete(session_ids: list[str]) -> None:
        try:
            store.delete(session_ids)
        except Unavailable as error:  # they are back after a restart, and idle then
            log.error("not forgotten", sessions=len(session_ids), why=error.message)

    def forget(session_ids: list[str]) -> None:
        submit(partial(delete, session_ids))

    found = store.load(_tell_damage)
    registry = Registry(
        limits,
        last_number=store.last_number,
        engine_fingerprint=parts.engine_fingerprint,
        on_drop=forget,
    )
    for stored in found:
        start, session = stored.start, _restored(stored, store, parts, limits)
        whose = start.number, start.owner, start.request
        registry.adopt(session, *whose, stored.age_seconds, start.engine_fingerprint)
    return registry


def _tell_damage(number: int) -> None:
    log.error("a stored session is damaged and left out", number=number)


def _restored(stored: Stored, store: Store, parts: Parts, limits: ServerLimits) -> Session:
    """Return a session that goes on, unless it began under another engine."""
    start = stored.start
    session = Session.restored(stored, partial(parts.make_engine, start.resolved), limits, store)
    ours, theirs = parts.engine_fingerprint, start.engine_fingerprint
    if session.can_go_on and ours != theirs:
        message = f"the session began under {theirs}, and this server has {ours}; start a new session"
        session.fail(WrongState("ENGINE_CHANGED", message))
    return session

"""gRPC alone: a service that drops what it is sent, and its client; the rest of the path is ours.

``python -m tests.bench.bare_grpc ADDRESS``: each message is answered by an empty one.
"""

import asyncio
import queue
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from guest_svc.window import WINDOW_BLOCKS
from tests.bench.pair import Process

_SERVICE: Final = "exitlab.bench.Bare"
_OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def receiver(address: str) -> Process:
    """Start the receiving process."""
    return Process([sys.executable, "-m", "tests.bench.bare_grpc", address])


def send(address: str, messages: Sequence[bytes]) -> float:
    """Send all messages with a stream's window; return seconds until all are answered."""
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        grpc.channel_ready_future(channel).result()
        method: Any = channel.stream_stream(f"/{_SERVICE}/Drop")
        start = time.perf_counter()
        answers = method(iter(waiting.get, None))
        for number, message in enumerate(messages):
            if number >= WINDOW_BLOCKS:
                next(answers)
            waiting.put(message)
        for _ in range(min(WINDOW_BLOCKS, len(messages))):
            next(answers)
        seconds = time.perf_counter() - start
        waiting.put(None)
    return seconds


async def _drop(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b""


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    handler: Any = grpc.stream_stream_rpc_method_handler(_drop)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Drop": handler}),))
    server.add_insecure_port(address)
    await server.start()
    print("listening on", address, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))

"""A transparent TCP proxy that delays: what the firewall redirects here goes on to where it was bound for, and
arrives so much later, in both directions. ``lab_proxy.py PORT SECONDS``; ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections import deque
from typing import Final

SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h
READ: Final = 1 << 18
HELD: Final = 1 << 25  # bytes on the way in one direction; more than a fast link carries in any delay used here


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Copy one direction, each piece ``delay`` seconds after it came."""
    loop = asyncio.get_running_loop()
    line: deque[tuple[float, bytes]] = deque()
    filled, drained = asyncio.Event(), asyncio.Event()
    held = 0

    async def deliver() -> None:
        nonlocal held
        while True:
            while not line:
                filled.clear()
                await filled.wait()
            due, data = line.popleft()
            if not data:
                return
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            writer.write(data)
            await writer.drain()
            held -= len(data)
            drained.set()

    delivering = asyncio.create_task(deliver())
    try:
        data = b" "
        while data:
            data = await reader.read(READ)
            line.append((loop.time() + delay, data))
            held += len(data)
            filled.set()
            while held > HELD and not delivering.done():
                drained.clear()
                await drained.wait()
        await delivering
    finally:
        delivering.cancel()
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await delivering


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """One connection."""
    sock = writer.get_extra_info("socket")
    port, packed = struct.unpack("!2xH4s8x", sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    ends = [writer]
    with contextlib.suppress(OSError):
        onward, back = await asyncio.open_connection(socket.inet_ntoa(packed), port, limit=READ)
        ends.append(back)
        both = [asyncio.create_task(carry(*way, delay)) for way in ((reader, back), (onward, writer))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)  # ZeroMQ never half-closes
        for way in both:
            way.cancel()
        await asyncio.gather(*both, return_exceptions=True)
    for end in ends:
        end.close()
        with contextlib.suppress(OSError):
            await end.wait_closed()


async def main(port: int, delay: float) -> None:
    """Serve until standard input closes."""
    server = await asyncio.start_server(lambda r, w: serve(r, w, delay), "0.0.0.0", port, limit=READ)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: over.set() if not os.read(0, 1) else None)
    print("ready", flush=True)
    await over.wait()
    server.close()
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))

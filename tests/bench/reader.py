"""Two hundred followers in one process: `SOCKET JOB FOLLOWERS`; prints the fewest and most lines that one received."""

import json
import selectors
import socket
import sys

PIECE_BYTES = 1 << 18


def main() -> None:
    """Follow one job's log many times over, to its end."""
    path, job, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    lines = [0] * count
    ends = [b""] * count
    selector = selectors.DefaultSelector()
    for number in range(count):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(path)
        stream.sendall(f"GET /v1/jobs/{job}/logs?follow=1 HTTP/1.1\r\nHost: stoker\r\n\r\n".encode())
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_READ, number)
    open_streams = count
    buffer = bytearray(PIECE_BYTES)
    view = memoryview(buffer)
    while open_streams:
        for key, _ in selector.select():
            size = key.fileobj.recv_into(view)
            number = key.data
            # A line's end is the two characters \n of JSON; they may be cut apart.
            lines[number] += buffer.count(b"\\n", 0, size) + (ends[number][-1:] == b"\\" and buffer[:1] == b"n")
            ends[number] = (ends[number] + bytes(view[max(0, size - 64) : size]))[-64:]
            if not size or ends[number].endswith(b"0\r\n\r\n"):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                open_streams -= 1
    print(json.dumps({"least": min(lines), "most": max(lines)}))


main()

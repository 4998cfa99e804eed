"""A talkative job: `LINES_A_SECOND SECONDS`, in bursts of five milliseconds."""

import os
import sys
import time

BURST_S = 0.005


def main() -> None:
    """Write numbered lines at a steady rate."""
    rate, seconds = int(sys.argv[1]), float(sys.argv[2])
    total = int(rate * seconds)
    began = time.monotonic()
    written = 0
    while written < total:
        due = min(total, int((time.monotonic() - began) * rate) + 1)
        text = "".join(f"step {number:08d} loss 0.12345678 rate 0.00030000\n" for number in range(written, due))
        os.write(1, text.encode())
        written = due
        time.sleep(BURST_S)


main()

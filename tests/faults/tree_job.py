"""The job that does not want to die: fork, setsid, double fork, deaf to SIGTERM, and one that moves on all the time."""

import os
import signal
import time

# A test that is itself killed must not leave this on the box for ever.
END = time.monotonic() + 180


def forever() -> None:
    """Stay."""
    while time.monotonic() < END:
        time.sleep(1)
    os._exit(0)


def fork() -> bool:
    """Fork; True in the child."""
    return os.fork() == 0


signal.signal(signal.SIGTERM, signal.SIG_IGN)
if fork():
    forever()
if fork():
    os.setsid()
    forever()
if fork():
    if fork():
        os.setsid()
        if fork():
            forever()
        os._exit(0)
    os._exit(0)
if fork():
    os.setpgid(0, 0)
    forever()
if fork():
    while time.monotonic() < END:  # a new pid every few milliseconds
        time.sleep(0.003)
        if not fork():
            os._exit(0)
print("up", flush=True)
forever()

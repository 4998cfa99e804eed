"""The few calls of inotify that we need, by ctypes: the standard library has none."""

from __future__ import annotations

import ctypes
import os
import struct

_IN_MODIFY = 0x00000002
_IN_ATTRIB = 0x00000004
_IN_MOVE_SELF = 0x00000800
_IN_ONESHOT = 0x80000000
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify instance whose watches fire once and are gone, so that a busy writer costs one event a look."""

    def __init__(self) -> None:
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add_once(self, path: str) -> int:
        """Watch for the next write to `path`; return the number that `read` will give. OSError: too many watches."""
        return self._add(path, _IN_MODIFY)

    def add_name_once(self, path: str) -> int:
        """Watch for the next change of what `path` is called, how often and by whom: also that it goes."""
        return self._add(path, _IN_ATTRIB | _IN_MOVE_SELF)

    def remove(self, watch: int) -> None:
        """Forget a watch; one that has fired is already forgotten."""
        _libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[int]:
        """Return the watches that fired; never blocks."""
        fired: list[int] = []
        try:
            content = os.read(self.descriptor, 65536)
        except BlockingIOError:
            return fired
        at = 0
        while at < len(content):
            watch, mask, _, length = _EVENT.unpack_from(content, at)
            if mask & (_IN_MODIFY | _IN_ATTRIB | _IN_MOVE_SELF):
                fired.append(watch)
            at += _EVENT.size + length
        return fired

    def _add(self, path: str, mask: int) -> int:
        flags = ctypes.c_uint32(mask | _IN_ONESHOT)
        return _checked(_libc.inotify_add_watch(self.descriptor, os.fsencode(path), flags))

    def close(self) -> None:
        """Close the instance and with it every watch."""
        os.close(self.descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

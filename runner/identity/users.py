"""The users of the box by name: for people, beside the uid that everything is decided by."""

from __future__ import annotations

import pwd
from functools import lru_cache

USERS_MAX = 1024


def user_name(uid: int) -> str | None:
    """Return the name of a user, None where the box knows none for the uid."""
    try:
        return _known(uid)
    except KeyError:
        return None


@lru_cache(USERS_MAX)
def _known(uid: int) -> str:
    """Look a name up once: the answer may come from another machine. One that is not there is asked for again."""
    return pwd.getpwuid(uid).pw_name

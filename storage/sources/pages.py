"""How far a listing goes that comes in pages: a server that never ends it must not hold whoever reads it."""

from __future__ import annotations

from storage.errors import SourceFailed

# Five times what the largest tree takes; a page may well hold nothing.
MAX_PAGES = 10_000
MAX_MARK_LENGTH = 4096


class Pages:
    """The pages of one listing that were asked for, by the mark with which the server goes on."""

    def __init__(self, shown: str) -> None:
        self._shown, self._seen = shown, set[str]()

    def after(self, mark: str) -> str:
        """Return the mark of the page to ask for next; raise `SourceFailed` where the listing will not end."""
        if not mark or mark in self._seen or len(mark) > MAX_MARK_LENGTH or len(self._seen) >= MAX_PAGES:
            raise SourceFailed(f"{self._shown}: the server's listing does not end", transient=False)
        self._seen.add(mark)
        return mark

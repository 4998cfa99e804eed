-- What keys were before they were changed or removed, sealed as they were: kept while a log may still show it, so that it
-- stays masked there.

CREATE TABLE old_keys (
    id INTEGER PRIMARY KEY,
    owner_uid INTEGER NOT NULL CHECK (owner_uid >= 0),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    sealed BLOB NOT NULL,
    since_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL
) STRICT;

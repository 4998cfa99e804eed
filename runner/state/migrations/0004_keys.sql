-- Third-party credentials: what may be shown in clear, the rest sealed and bound to owner, kind and name; and which of
-- them opens an input.

CREATE TABLE keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_uid INTEGER NOT NULL CHECK (owner_uid >= 0),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    sealed BLOB NOT NULL,
    public TEXT NOT NULL,
    secrets TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    rotated_us INTEGER,
    used_us INTEGER,
    UNIQUE (owner_uid, name)
) STRICT;

ALTER TABLE inputs ADD COLUMN key_name TEXT;

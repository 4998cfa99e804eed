-- Of the checkpoint of an element, what is kept at the place that its job names: the newest set there that it wrote or
-- began with, what it was made of here, and how the last tries to renew it went.
CREATE TABLE mirrors (
    job_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 0),
    digest TEXT,
    size_bytes INTEGER,
    files INTEGER,
    look TEXT,
    saved_us INTEGER,
    tried_us INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    fault TEXT CHECK ((fault IS NULL) = (failures = 0)),
    PRIMARY KEY (job_id, idx),
    FOREIGN KEY (job_id, idx) REFERENCES elements (job_id, idx)
) STRICT, WITHOUT ROWID;

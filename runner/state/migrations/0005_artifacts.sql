-- Artifacts that a user names: made from a source, and seen while it is still fetched, or from what a job left.

CREATE TABLE named (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_uid INTEGER NOT NULL CHECK (owner_uid >= 0),
    account TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('model', 'data', 'checkpoint', 'package', 'output')),
    name TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    state TEXT NOT NULL CHECK (state IN ('downloading', 'ready', 'failed')),
    tree_digest TEXT,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    files INTEGER NOT NULL DEFAULT 0,
    job_id INTEGER REFERENCES jobs (id),
    idx INTEGER,
    attempt_id INTEGER REFERENCES attempts (id),
    parent_id INTEGER REFERENCES artifacts (id),
    source TEXT,
    stated TEXT,
    variables BLOB REFERENCES variables (digest),
    pins TEXT NOT NULL DEFAULT '{}',
    fault TEXT,
    description TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '[]',
    pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)),
    created_us INTEGER NOT NULL,
    removed_us INTEGER,
    UNIQUE (owner_uid, kind, name, version),
    CHECK ((state = 'ready') = (tree_digest IS NOT NULL)),
    CHECK ((state = 'failed') = (fault IS NOT NULL))
) STRICT;
INSERT INTO named
    (id, owner_uid, account, kind, name, version, state, tree_digest, size_bytes, files, job_id, idx, attempt_id,
     created_us, removed_us)
SELECT id, owner_uid, COALESCE((SELECT account FROM jobs WHERE jobs.id = job_id), ''), kind, name, version, 'ready',
    tree_digest, size_bytes, files, job_id, idx, attempt_id, created_us, removed_us
FROM artifacts;
DROP TABLE artifacts;
ALTER TABLE named RENAME TO artifacts;
CREATE INDEX artifacts_of_job ON artifacts (job_id, idx);
CREATE INDEX artifacts_by_digest ON artifacts (tree_digest);
CREATE INDEX artifacts_under_way ON artifacts (id) WHERE state = 'downloading';

-- The last version that a name had: no version is given twice, whatever is removed or renamed.
CREATE TABLE artifact_names (
    owner_uid INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    last_version INTEGER NOT NULL CHECK (last_version > 0),
    PRIMARY KEY (owner_uid, kind, name)
) STRICT, WITHOUT ROWID;
INSERT INTO artifact_names SELECT owner_uid, kind, name, MAX(version) FROM artifacts GROUP BY owner_uid, kind, name;

-- Which artifact an input is of, where it names one.
ALTER TABLE inputs ADD COLUMN artifact_id INTEGER REFERENCES artifacts (id);
CREATE INDEX inputs_of_artifact ON inputs (artifact_id) WHERE artifact_id IS NOT NULL;

-- Jobs, their elements, attempts and what they hold; inputs, artifacts, events and answered requests.
-- An element is one index of an array; a plain job has one element with idx -1. Times are microseconds of wall
-- clock (_us) or nanoseconds of CLOCK_MONOTONIC (_ns).

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_uid INTEGER NOT NULL CHECK (owner_uid >= 0),
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    request TEXT NOT NULL,
    variables BLOB REFERENCES variables (digest),
    priority INTEGER NOT NULL,
    array_limit INTEGER CHECK (array_limit > 0),
    environment_dir TEXT,
    created_us INTEGER NOT NULL,
    removed_us INTEGER
) STRICT;
CREATE INDEX jobs_by_name ON jobs (name);

CREATE TABLE variables (
    digest BLOB PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE elements (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    idx INTEGER NOT NULL CHECK (idx >= -1),
    state TEXT NOT NULL DEFAULT 'pending' CHECK (
        state IN ('pending', 'starting', 'running', 'stopping', 'saving', 'succeeded', 'failed', 'stopped')),
    queued_us INTEGER NOT NULL,
    held INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1)),
    not_before_us INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    started_us INTEGER,
    finished_us INTEGER,
    ending TEXT,
    sentence TEXT,
    exit_code INTEGER CHECK (exit_code BETWEEN 0 AND 255),
    signal INTEGER CHECK (signal BETWEEN 1 AND 64),
    PRIMARY KEY (job_id, idx),
    CHECK ((state IN ('succeeded', 'failed', 'stopped')) = (finished_us IS NOT NULL)),
    CHECK (finished_us IS NULL OR ending IS NOT NULL),
    CHECK (state <> 'running' OR started_us IS NOT NULL),
    CHECK (state <> 'pending' OR attempts >= 0),
    CHECK (state NOT IN ('starting', 'running', 'stopping') OR attempts > 0),
    CHECK (held = 0 OR state = 'pending'),
    CHECK (exit_code IS NULL OR signal IS NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX elements_open ON elements (job_id, idx) WHERE finished_us IS NULL;
CREATE INDEX elements_finished ON elements (finished_us) WHERE finished_us IS NOT NULL;
CREATE INDEX elements_failed ON elements (finished_us) WHERE state = 'failed';

CREATE TABLE attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    number INTEGER NOT NULL CHECK (number > 0),
    token TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    decided_us INTEGER NOT NULL,
    started_us INTEGER,
    ended_us INTEGER,
    start_ns INTEGER,
    end_ns INTEGER,
    stop_ending TEXT,
    stop_deadline_us INTEGER,
    ending TEXT,
    exit_code INTEGER,
    signal INTEGER,
    record TEXT,
    becomes TEXT CHECK (becomes IN ('succeeded', 'failed', 'stopped')),
    sentence TEXT,
    why TEXT NOT NULL DEFAULT '',
    gpu_rate_micro INTEGER NOT NULL DEFAULT 0 CHECK (gpu_rate_micro >= 0),
    cpu_rate_micro INTEGER NOT NULL DEFAULT 0 CHECK (cpu_rate_micro >= 0),
    peak_memory_bytes INTEGER,
    peak_gpu_memory_bytes INTEGER,
    energy_mj INTEGER,
    output_digest TEXT,
    output_bytes INTEGER,
    output_files INTEGER,
    FOREIGN KEY (job_id, idx) REFERENCES elements (job_id, idx),
    UNIQUE (job_id, idx, number),
    CHECK ((ending IS NULL) = (ended_us IS NULL)),
    CHECK (end_ns IS NULL OR start_ns IS NOT NULL)
) STRICT;
-- An element has one attempt under way at the most: nothing runs twice at once (S5).
CREATE UNIQUE INDEX attempts_open ON attempts (job_id, idx) WHERE ended_us IS NULL;

CREATE TABLE allocations (
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    device_uuid TEXT NOT NULL,
    opened_us INTEGER NOT NULL,
    closed_us INTEGER,
    PRIMARY KEY (attempt_id, device_uuid)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX allocations_open ON allocations (device_uuid) WHERE closed_us IS NULL;

CREATE TABLE devices (
    uuid TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,
    first_seen_us INTEGER NOT NULL,
    last_seen_us INTEGER NOT NULL,
    quarantine TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE inputs (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    name TEXT NOT NULL,
    uri TEXT NOT NULL,
    writable INTEGER NOT NULL CHECK (writable IN (0, 1)),
    tree_digest TEXT,
    size_bytes INTEGER,
    files INTEGER,
    pins TEXT,
    fault TEXT,
    PRIMARY KEY (job_id, name)
) STRICT, WITHOUT ROWID;

-- What a URI was when it was last fetched: a warm hit makes no network request.
CREATE TABLE sources (
    uri TEXT PRIMARY KEY,
    tree_digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    pins TEXT NOT NULL,
    fetched_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_uid INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('model', 'data', 'checkpoint', 'package', 'output')),
    name TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    tree_digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    job_id INTEGER REFERENCES jobs (id),
    idx INTEGER,
    attempt_id INTEGER REFERENCES attempts (id),
    created_us INTEGER NOT NULL,
    removed_us INTEGER,
    UNIQUE (owner_uid, kind, name, version)
) STRICT;
CREATE INDEX artifacts_of_job ON artifacts (job_id, idx);
CREATE INDEX artifacts_by_digest ON artifacts (tree_digest);

CREATE TABLE metrics (
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    at_us INTEGER NOT NULL,
    PRIMARY KEY (attempt_id, name, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE samples (
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    at_us INTEGER NOT NULL,
    cpu_percent REAL,
    memory_bytes INTEGER,
    gpu_memory_bytes INTEGER,
    gpu_utilization REAL,
    power_mw INTEGER,
    PRIMARY KEY (attempt_id, at_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    job_id INTEGER,
    idx INTEGER,
    attempt INTEGER,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_job ON events (job_id, idx);

-- Every request that changed something, kept for ever with its answer (L2).
CREATE TABLE requests (
    owner_uid INTEGER NOT NULL,
    key TEXT NOT NULL,
    body_hash BLOB NOT NULL,
    answer TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    PRIMARY KEY (owner_uid, key)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER requests_stay_update BEFORE UPDATE ON requests BEGIN SELECT RAISE(ABORT, 'requests are append-only'); END;
CREATE TRIGGER requests_stay_delete BEFORE DELETE ON requests BEGIN SELECT RAISE(ABORT, 'requests are append-only'); END;

CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

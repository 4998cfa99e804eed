BEGIN TRANSACTION;
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('user', 'project', 'system')),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    mode TEXT NOT NULL CHECK (mode IN ('metered', 'prepaid') AND (kind <> 'system' OR mode = 'metered')),
    created_us INTEGER NOT NULL,
    UNIQUE (kind, name)
) STRICT;
INSERT INTO "accounts" VALUES(1,'system','usage','metered',0);
INSERT INTO "accounts" VALUES(2,'system','grants','metered',0);
INSERT INTO "accounts" VALUES(3,'system','payments','metered',0);
INSERT INTO "accounts" VALUES(4,'user','eve','metered',1800000000000000);
CREATE TABLE allocations (
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    device_uuid TEXT NOT NULL,
    opened_us INTEGER NOT NULL,
    closed_us INTEGER,
    PRIMARY KEY (attempt_id, device_uuid)
) STRICT, WITHOUT ROWID;
CREATE TABLE artifact_names (
    owner_uid INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    last_version INTEGER NOT NULL CHECK (last_version > 0),
    PRIMARY KEY (owner_uid, kind, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE "artifacts" (
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
INSERT INTO "attempts" VALUES(1,1,-1,1,'t','b',1800000000000000,1800000000000000,1800000000000000,1,NULL,NULL,NULL,'completed',0,NULL,NULL,NULL,NULL,'',0,0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(2,2,1,1,'t','b',1800000000000000,1800000000000000,1800000000000000,1,NULL,NULL,NULL,'nonzero_exit',3,NULL,NULL,NULL,NULL,'',0,0,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE balances (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
    posted_micro INTEGER NOT NULL DEFAULT 0 CHECK (posted_micro = CAST(posted_micro AS INTEGER)),
    held_micro INTEGER NOT NULL DEFAULT 0 CHECK (held_micro = CAST(held_micro AS INTEGER) AND held_micro >= 0)
) STRICT;
INSERT INTO "balances" VALUES(1,1500000,0);
INSERT INTO "balances" VALUES(2,0,0);
INSERT INTO "balances" VALUES(3,0,0);
INSERT INTO "balances" VALUES(4,-1500000,0);
CREATE TABLE codes (
    job_id INTEGER PRIMARY KEY REFERENCES jobs (id),
    way TEXT NOT NULL CHECK (way IN ('recorded', 'snapshot', 'git')),
    place TEXT NOT NULL,
    directory TEXT NOT NULL,
    commit_id TEXT,
    branch TEXT,
    remote TEXT,
    changed INTEGER,
    untracked INTEGER,
    tree_digest TEXT
, looked_us INTEGER, trouble TEXT) STRICT;
CREATE TABLE devices (
    uuid TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,
    first_seen_us INTEGER NOT NULL,
    last_seen_us INTEGER NOT NULL,
    quarantine TEXT
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
INSERT INTO "elements" VALUES(1,-1,'succeeded',1800000000000000,0,0,1,1800000000000000,1800000000000000,'completed','over',0,NULL);
INSERT INTO "elements" VALUES(2,0,'pending',1800000000000000,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "elements" VALUES(2,1,'failed',1800000000000000,0,0,1,1800000000000000,1800000000000000,'nonzero_exit','over',3,NULL);
INSERT INTO "elements" VALUES(2,2,'pending',1800000000000000,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    job_id INTEGER,
    idx INTEGER,
    attempt INTEGER,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
INSERT INTO "events" VALUES(1,1800000000000000,1,-1,NULL,'submitted','{"name": "first"}');
INSERT INTO "events" VALUES(2,1800000000000000,2,-1,NULL,'submitted','{"name": "hardy-moon"}');
INSERT INTO "events" VALUES(3,1800000000000000,1,-1,NULL,'starting','{}');
INSERT INTO "events" VALUES(4,1800000000000000,1,-1,NULL,'running','{}');
INSERT INTO "events" VALUES(5,1800000000000000,1,-1,NULL,'saving','{}');
INSERT INTO "events" VALUES(6,1800000000000000,1,-1,NULL,'succeeded','{"ending": "completed", "sentence": "over", "exit_code": 0}');
INSERT INTO "events" VALUES(7,1800000000000000,2,1,NULL,'starting','{}');
INSERT INTO "events" VALUES(8,1800000000000000,2,1,NULL,'running','{}');
INSERT INTO "events" VALUES(9,1800000000000000,2,1,NULL,'saving','{}');
INSERT INTO "events" VALUES(10,1800000000000000,2,1,NULL,'failed','{"ending": "nonzero_exit", "sentence": "over", "exit_code": 3}');
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
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
    fault TEXT, way TEXT, notice TEXT, key_name TEXT, artifact_id INTEGER REFERENCES artifacts (id),
    PRIMARY KEY (job_id, name)
) STRICT, WITHOUT ROWID;
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
INSERT INTO "jobs" VALUES(1,0,'eve','first','{"name": "first", "command": ["python", "train.py"], "cwd": "/tmp/tmp3pfw9xs0/work", "env": {"A": ""}, "version": 1}','[0, 1000, 0, 1]',X'82A6C5C23A3B7E06C16585D184C37A8D7BD3E71AD5AFECBAA2F3AAE0CD5D28F1',0,NULL,NULL,1800000000000000,NULL);
INSERT INTO "jobs" VALUES(2,0,'eve','hardy-moon','{"command": ["true"], "cwd": "/tmp/tmp3pfw9xs0/work", "retries": 2, "array": "0-2%1", "version": 1}','[0, 1000, 0, 1]',X'4F06F87B467420FFFC3D9BEA21D9E270512BF0382683C20D2B36D47965D6A025',0,1,NULL,1800000000000000,NULL);
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
CREATE TABLE ledger_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO "ledger_head" VALUES(1,1,X'62F09F46E892BDDAA3842B16D9A393899A0E13DA7771592B793EA7A8E4F680EE');
CREATE TABLE metrics (
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    at_us INTEGER NOT NULL,
    PRIMARY KEY (attempt_id, name, step)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE old_keys (
    id INTEGER PRIMARY KEY,
    owner_uid INTEGER NOT NULL CHECK (owner_uid >= 0),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    sealed BLOB NOT NULL,
    since_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL
) STRICT;
CREATE TABLE prices (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('gpu', 'cpu', 'storage')),
    model TEXT NOT NULL,
    rate_micro INTEGER
        CHECK (rate_micro = CAST(rate_micro AS INTEGER) AND rate_micro BETWEEN 0 AND 1000000000000000),
    starts_us INTEGER NOT NULL,
    actor TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TABLE requests (
    owner_uid INTEGER NOT NULL,
    key TEXT NOT NULL,
    body_hash BLOB NOT NULL,
    answer TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    PRIMARY KEY (owner_uid, key)
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
CREATE TABLE sources (
    uri TEXT PRIMARY KEY,
    tree_digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    pins TEXT NOT NULL,
    fetched_us INTEGER NOT NULL
, used_us INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE transfers (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE CHECK (length(key) BETWEEN 1 AND 500),
    kind TEXT NOT NULL CHECK (kind IN ('charge', 'correction', 'storage', 'grant', 'topup', 'refund', 'adjustment')),
    phase TEXT NOT NULL CHECK (phase IN ('single', 'pending', 'posted', 'voided')),
    debit_account_id INTEGER NOT NULL REFERENCES accounts (id),
    credit_account_id INTEGER NOT NULL REFERENCES accounts (id),
    amount_micro INTEGER NOT NULL
        CHECK (amount_micro = CAST(amount_micro AS INTEGER) AND amount_micro BETWEEN 1 AND 1000000000000000000),
    linked_seq INTEGER REFERENCES transfers (seq),
    attempt_id INTEGER,
    from_ns INTEGER CHECK (from_ns >= 0),
    to_ns INTEGER CHECK (to_ns > from_ns),
    attempt_total_micro INTEGER CHECK (attempt_total_micro >= 0),
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    CHECK (debit_account_id <> credit_account_id),
    CHECK (phase NOT IN ('posted', 'voided') AND kind NOT IN ('refund', 'correction') OR linked_seq IS NOT NULL),
    CHECK (phase = 'single' OR kind = 'charge'),
    CHECK ((attempt_total_micro IS NULL) = (from_ns IS NULL) AND (from_ns IS NULL) = (to_ns IS NULL)),
    CHECK (attempt_total_micro IS NULL OR attempt_id IS NOT NULL AND kind IN ('charge', 'correction'))
) STRICT;
INSERT INTO "transfers" VALUES(1,'attempt/1/0','charge','single',4,1,1500000,NULL,1,0,1000000000,1500000,'','',1800000000000000,X'62F09F46E892BDDAA3842B16D9A393899A0E13DA7771592B793EA7A8E4F680EE');
CREATE TABLE variables (
    digest BLOB PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "variables" VALUES(X'4F06F87B467420FFFC3D9BEA21D9E270512BF0382683C20D2B36D47965D6A025',X'0140C1D9082810E3585225E201EA0445D785CF0A5658BD9D03CF74B6FA24F3CA9E4BD85C51FC0C0958382FF269D28D2C321B69D805CC868C14C13A2F86121B9E8B8FAEF8151D96D00928B6061B8C74739E8C62AD96DA0125B138AB6B0BF06ABEEC489DBFBE0DF42051ABD61A536C1062B440F99F3F533A49CF558B353735A11F');
INSERT INTO "variables" VALUES(X'82A6C5C23A3B7E06C16585D184C37A8D7BD3E71AD5AFECBAA2F3AAE0CD5D28F1',X'0140C1D9082810E358280F49D9EC97B208568B9AE8FEDC431863F7C1A0506715948249E15E9CD7592CDAB67EE1DACB5890E74118C281A647D548FBE6131E2599D5CDE3C0F0C1D535A24BB13F349CBBD30EB61EB27AD13F2EA7E249BEBC1A55FDD451BC0693FE8455B85DEBD767FA4B53161C80164A2A8F9153AFE002C1F45E4B1D23D5DCF547402E41EA');
CREATE INDEX jobs_by_name ON jobs (name);
CREATE INDEX elements_open ON elements (job_id, idx) WHERE finished_us IS NULL;
CREATE INDEX elements_finished ON elements (finished_us) WHERE finished_us IS NOT NULL;
CREATE INDEX elements_failed ON elements (finished_us) WHERE state = 'failed';
CREATE UNIQUE INDEX attempts_open ON attempts (job_id, idx) WHERE ended_us IS NULL;
CREATE UNIQUE INDEX allocations_open ON allocations (device_uuid) WHERE closed_us IS NULL;
CREATE INDEX events_of_job ON events (job_id, idx);
CREATE TRIGGER requests_stay_update BEFORE UPDATE ON requests BEGIN SELECT RAISE(ABORT, 'requests are append-only'); END;
CREATE TRIGGER requests_stay_delete BEFORE DELETE ON requests BEGIN SELECT RAISE(ABORT, 'requests are append-only'); END;
CREATE INDEX transfers_debit ON transfers (debit_account_id);
CREATE INDEX transfers_credit ON transfers (credit_account_id);
CREATE INDEX transfers_attempt ON transfers (attempt_id) WHERE attempt_total_micro IS NOT NULL;
CREATE INDEX transfers_linked ON transfers (linked_seq) WHERE linked_seq IS NOT NULL;
CREATE UNIQUE INDEX transfers_resolved ON transfers (linked_seq) WHERE phase IN ('posted', 'voided');
CREATE TRIGGER accounts_keep_identity BEFORE UPDATE OF id, kind, name, created_us ON accounts
BEGIN
    SELECT RAISE(ABORT, 'accounts: only the mode may change');
END;
CREATE TRIGGER accounts_no_delete BEFORE DELETE ON accounts
BEGIN
    SELECT RAISE(ABORT, 'accounts: append-only');
END;
CREATE TRIGGER accounts_guard BEFORE INSERT ON accounts
WHEN EXISTS (SELECT 1 FROM accounts WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM accounts WHERE kind = NEW.kind AND name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'accounts: taken');
END;
CREATE TRIGGER accounts_open_balance AFTER INSERT ON accounts
BEGIN
    INSERT INTO balances (account_id) VALUES (NEW.id);
END;
CREATE TRIGGER balances_no_delete BEFORE DELETE ON balances
BEGIN
    SELECT RAISE(ABORT, 'balances: never deleted');
END;
CREATE TRIGGER transfers_no_update BEFORE UPDATE ON transfers
BEGIN
    SELECT RAISE(ABORT, 'transfers: append-only');
END;
CREATE TRIGGER transfers_no_delete BEFORE DELETE ON transfers
BEGIN
    SELECT RAISE(ABORT, 'transfers: append-only');
END;
CREATE TRIGGER transfers_guard BEFORE INSERT ON transfers
WHEN NEW.seq IS NOT (SELECT seq + 1 FROM ledger_head) OR EXISTS (SELECT 1 FROM transfers WHERE key = NEW.key)
BEGIN
    SELECT RAISE(ABORT, 'transfers: seq must follow the head and a key is used once');
END;
CREATE TRIGGER transfers_guard_span BEFORE INSERT ON transfers
WHEN NEW.attempt_total_micro IS NOT NULL AND (
    coalesce((SELECT kind FROM transfers WHERE attempt_id = NEW.attempt_id AND attempt_total_micro IS NOT NULL
        ORDER BY seq DESC LIMIT 1), 'charge') <> 'charge'
    OR CASE NEW.kind WHEN 'charge' THEN NEW.from_ns ELSE NEW.to_ns END
        IS NOT coalesce((SELECT to_ns FROM transfers WHERE attempt_id = NEW.attempt_id AND attempt_total_micro IS NOT NULL
            ORDER BY seq DESC LIMIT 1), 0)
)
BEGIN
    SELECT RAISE(ABORT, 'transfers: the span does not follow the last one of its attempt');
END;
CREATE TRIGGER transfers_guard_hold BEFORE INSERT ON transfers
WHEN NEW.phase IN ('posted', 'voided') AND (
    EXISTS (SELECT 1 FROM transfers WHERE linked_seq = NEW.linked_seq AND phase IN ('posted', 'voided'))
    OR NOT EXISTS (SELECT 1 FROM transfers AS hold WHERE hold.seq = NEW.linked_seq AND hold.phase = 'pending'
        AND hold.debit_account_id = NEW.debit_account_id AND hold.credit_account_id = NEW.credit_account_id
        AND hold.amount_micro >= NEW.amount_micro)
)
BEGIN
    SELECT RAISE(ABORT, 'transfers: no such open hold');
END;
CREATE TRIGGER transfers_move_head AFTER INSERT ON transfers
BEGIN
    UPDATE ledger_head SET seq = NEW.seq, hash = NEW.hash;
END;
CREATE TRIGGER transfers_move_posted AFTER INSERT ON transfers WHEN NEW.phase IN ('single', 'posted')
BEGIN
    UPDATE balances SET posted_micro = posted_micro - NEW.amount_micro WHERE account_id = NEW.debit_account_id;
    UPDATE balances SET posted_micro = posted_micro + NEW.amount_micro WHERE account_id = NEW.credit_account_id;
END;
CREATE TRIGGER transfers_move_hold AFTER INSERT ON transfers WHEN NEW.phase = 'pending'
BEGIN
    UPDATE balances SET held_micro = held_micro + NEW.amount_micro WHERE account_id = NEW.debit_account_id;
END;
CREATE TRIGGER transfers_free_hold AFTER INSERT ON transfers WHEN NEW.phase IN ('posted', 'voided')
BEGIN
    UPDATE balances SET held_micro = held_micro - (SELECT amount_micro FROM transfers WHERE seq = NEW.linked_seq)
    WHERE account_id = NEW.debit_account_id;
END;
CREATE TRIGGER ledger_head_forward BEFORE UPDATE ON ledger_head
WHEN NEW.id <> 1 OR NEW.seq <> OLD.seq + 1 OR NEW.hash IS NOT (SELECT hash FROM transfers WHERE seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'ledger_head: moves with an entry only');
END;
CREATE TRIGGER ledger_head_no_delete BEFORE DELETE ON ledger_head
BEGIN
    SELECT RAISE(ABORT, 'ledger_head: never deleted');
END;
CREATE TRIGGER prices_no_update BEFORE UPDATE ON prices
BEGIN
    SELECT RAISE(ABORT, 'prices: append-only');
END;
CREATE TRIGGER prices_no_delete BEFORE DELETE ON prices
BEGIN
    SELECT RAISE(ABORT, 'prices: append-only');
END;
CREATE TRIGGER prices_guard BEFORE INSERT ON prices
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM prices)
BEGIN
    SELECT RAISE(ABORT, 'prices: seq must follow the last');
END;
CREATE TRIGGER ledger_head_guard BEFORE INSERT ON ledger_head
BEGIN
    SELECT RAISE(ABORT, 'ledger_head: one row');
END;
CREATE INDEX artifacts_of_job ON artifacts (job_id, idx);
CREATE INDEX artifacts_by_digest ON artifacts (tree_digest);
CREATE INDEX artifacts_under_way ON artifacts (id) WHERE state = 'downloading';
CREATE INDEX inputs_of_artifact ON inputs (artifact_id) WHERE artifact_id IS NOT NULL;
CREATE INDEX inputs_by_digest ON inputs (tree_digest) WHERE tree_digest IS NOT NULL;
CREATE INDEX codes_to_look ON codes (job_id) WHERE way = 'recorded' AND looked_us IS NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('artifacts',0);
INSERT INTO "sqlite_sequence" VALUES('jobs',2);
INSERT INTO "sqlite_sequence" VALUES('events',10);
INSERT INTO "sqlite_sequence" VALUES('attempts',2);
COMMIT;
PRAGMA user_version = 10;

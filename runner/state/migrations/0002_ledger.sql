-- The books: accounts, transfers, balances, prices. Entries are written once and never changed; a correction is a new entry.
-- Amounts are micro-credits, *_us microseconds of wall clock (shown, never computed with), *_ns nanoseconds of an attempt's run time.

CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('user', 'project', 'system')),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    mode TEXT NOT NULL CHECK (mode IN ('metered', 'prepaid') AND (kind <> 'system' OR mode = 'metered')),
    created_us INTEGER NOT NULL,
    UNIQUE (kind, name)
) STRICT;

-- Derived, kept in the same transaction as the entries by the triggers below, re-derived by `credit verify`.
CREATE TABLE balances (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
    posted_micro INTEGER NOT NULL DEFAULT 0 CHECK (posted_micro = CAST(posted_micro AS INTEGER)),
    held_micro INTEGER NOT NULL DEFAULT 0 CHECK (held_micro = CAST(held_micro AS INTEGER) AND held_micro >= 0)
) STRICT;

-- One row is both sides, so every entry sums to zero by itself.
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

CREATE INDEX transfers_debit ON transfers (debit_account_id);
CREATE INDEX transfers_credit ON transfers (credit_account_id);
CREATE INDEX transfers_attempt ON transfers (attempt_id) WHERE attempt_total_micro IS NOT NULL;
CREATE INDEX transfers_linked ON transfers (linked_seq) WHERE linked_seq IS NOT NULL;
-- A hold is posted or voided once.
CREATE UNIQUE INDEX transfers_resolved ON transfers (linked_seq) WHERE phase IN ('posted', 'voided');

-- The end of the hash chain: one row, so that a lost tail shows too.
CREATE TABLE ledger_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- A price holds from starts_us until a later row of its kind and model; a null rate takes the price off the list.
-- gpu: per device and hour; cpu: per core and hour; storage: per GB and month.
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

-- Nothing is updated or deleted. INSERT OR REPLACE deletes without firing a delete trigger: the guards refuse it before it starts.

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

-- No run time is paid twice: a span starts where the last one ended, and nothing follows a correction.
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

INSERT INTO accounts (id, kind, name, mode, created_us) VALUES
    (1, 'system', 'usage', 'metered', 0),
    (2, 'system', 'grants', 'metered', 0),
    (3, 'system', 'payments', 'metered', 0);
INSERT INTO ledger_head (id, seq, hash) VALUES (1, 0, zeroblob(32));

-- The one head row is there now; from here on it only moves.
CREATE TRIGGER ledger_head_guard BEFORE INSERT ON ledger_head
BEGIN
    SELECT RAISE(ABORT, 'ledger_head: one row');
END;

-- Where the code of a job came from, which directory of it the job runs in, and the tree that it is where it was kept.
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
) STRICT;
CREATE INDEX inputs_by_digest ON inputs (tree_digest) WHERE tree_digest IS NOT NULL;

-- When the work tree of recorded code had been looked at, and what could not be seen or kept of it.
ALTER TABLE codes ADD COLUMN looked_us INTEGER;
ALTER TABLE codes ADD COLUMN trouble TEXT;
CREATE INDEX codes_to_look ON codes (job_id) WHERE way = 'recorded' AND looked_us IS NULL;

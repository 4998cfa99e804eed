-- When a staged tree was last handed to a job: what was used longest ago gives way first.
ALTER TABLE sources ADD COLUMN used_us INTEGER NOT NULL DEFAULT 0;

UPDATE sources SET used_us = fetched_us;

-- How each input of a job was handed out, and what the job was told about that.

ALTER TABLE inputs ADD COLUMN way TEXT;
ALTER TABLE inputs ADD COLUMN notice TEXT;

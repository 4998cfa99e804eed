"""SQLite lives here alone: the engine, the tables, the queries and the migrations."""

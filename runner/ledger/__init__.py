"""Who pays what: integer rules over accounts, transfers and metered time."""

"""The runner: one daemon that queues, launches, watches, saves and bills the jobs of one box."""

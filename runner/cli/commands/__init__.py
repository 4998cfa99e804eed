"""One module a verb: `run(args, client, out)` asks the runner and prints; it returns the exit code."""

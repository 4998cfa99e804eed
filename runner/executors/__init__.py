"""Launch one attempt and watch it to its end, whatever happens to the runner."""

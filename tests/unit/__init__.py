"""Pure logic, one module at a time."""

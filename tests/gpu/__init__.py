"""What only a real GPU can show; each test skips loudly without one."""

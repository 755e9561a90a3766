"""Running cases: child processes, executors, store, records."""

"""Executors: where the cases of a run are computed."""

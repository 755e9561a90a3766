"""General image steps that run on the device of their input."""

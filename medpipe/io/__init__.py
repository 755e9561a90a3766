"""Reading and writing: the trust boundary."""

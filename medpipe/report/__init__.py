"""HTML reports made from the records of a run."""

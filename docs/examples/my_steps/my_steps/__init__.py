"""Steps of one group, for use in medpipe workflows."""

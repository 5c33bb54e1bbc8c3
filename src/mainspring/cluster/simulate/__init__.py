"""The scheduling core on traces: the same decisions as on a cluster, with events from a file or a generator."""

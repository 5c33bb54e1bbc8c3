"""Steps become a graph, a graph becomes runs: cached, resumable, triggered by what changed, with lineage."""

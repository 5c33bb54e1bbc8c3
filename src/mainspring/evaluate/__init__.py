"""Is it good enough to publish: perplexity against honest baselines, retrieval, comparisons, gates, reports."""

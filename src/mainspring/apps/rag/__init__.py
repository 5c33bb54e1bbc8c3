"""A cited assistant over one snapshot: chunks, hybrid retrieval, answers with their evidence, feedback."""

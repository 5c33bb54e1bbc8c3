"""What is computed: architectures, tokenizers, weights, embeddings and the profiles the planner reads."""

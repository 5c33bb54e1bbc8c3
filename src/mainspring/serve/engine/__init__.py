"""Continuous batching over a KV cache. Read request, blocks, schedule, kv, attention, sample, batch, loop."""

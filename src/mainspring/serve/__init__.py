"""Tokens and vectors out, within a service level: an engine, and an OpenAI-compatible server over anything servable."""

"""Readers: one module for each kind of source, each yielding documents and what it had to skip."""

"""Fakes, faults and probes for the tests: imported by nothing that ships."""

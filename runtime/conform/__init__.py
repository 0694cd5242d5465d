"""Conformance of a server to docs/protocol.md: numbered cases, run from outside over TCP."""

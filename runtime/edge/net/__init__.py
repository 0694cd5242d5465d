"""The way to the server: one connection, found again when it broke, shared by all requests."""

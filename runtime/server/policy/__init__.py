"""Who drafts, how much and for how long, and who may send: pure arithmetic over requests."""

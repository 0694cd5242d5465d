"""The SpecEdge runtime: the edge that drafts, the server that verifies, and what joins them."""

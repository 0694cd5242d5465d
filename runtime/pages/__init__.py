"""Pages to watch: an edge's chat with its draft trees, and a server's steps. Nothing is built."""

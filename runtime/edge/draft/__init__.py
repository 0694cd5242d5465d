"""What the edge drafts: the small model, the tree it grows, and when growing pays."""

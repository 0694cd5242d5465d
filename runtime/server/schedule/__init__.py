"""Which requests the next step verifies, and which pages they hold."""

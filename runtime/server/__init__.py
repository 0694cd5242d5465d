"""The server: admits sessions, batches their trees, verifies them with the target model."""

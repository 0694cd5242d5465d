"""The server: admits requests, batches their trees, verifies them with the target model."""

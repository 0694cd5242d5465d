"""Measurements. Each prints its numbers only after the result has been checked."""

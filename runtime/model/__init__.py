"""The model: weights, transformer, paged KV cache, the engine that runs both, and the tokenizer.

Knows tokens, trees and tensors; it refuses to know of networks, requests, edges and servers.
"""

"""The paper's table with stand-in models: their passes take the paper's times, and how often they
agree is a seeded process, calibrated on the paper's server-only columns alone.

Everything else is the product's own: server, edges, wire, scheduling, trees.
"""

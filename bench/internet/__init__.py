"""Simulated: a day of a million edges over two hundred replicas, by the product's own objects.

Three of them decide: the policy of a replica's steps (`replica.py`), the front's router (`day.py`)
and the prefix cache (`prefixes.py`).
"""

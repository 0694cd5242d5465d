"""Random faults in bytes, where coverage does not guide them."""

import random
from collections.abc import Sequence

NUMBERS = (
    0,
    1,
    2,
    31,
    64,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
TEXTS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"4096",
    b"9" * 40,
    b"[" * 9999,
)


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Data with one to four faults: flips, cuts, insertions, splices, limits of fields."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _fault(data, others, rng)
    return data


def _fault(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    size = rng.choice((1, 2, 4, 8))
    match rng.randrange(8):
        case 0 if data:
            at = rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + rng.randbytes(size) + data[at:]
        case 3:
            return data[:at] + data[at + rng.randint(1, 40) :]
        case 4:
            other = rng.choice(others)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 5:
            end = at + rng.randrange(12)
            return data[:at] + rng.choice(TEXTS) + data[end:]
        case _:
            number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
            return data[:at] + number.to_bytes(size, "little") + data[at + size :]

"""Which tokens of a row top-k, top-p and min-p keep: all above a cut, exactly, without sorting.

A row is a list of scaled logits (logit / T) compared as integers (`noise.ordered`). Tokens are
kept from the top down while those ahead measure less than a bound: their number for top-k, their
probability in float64 for top-p. The cut is found by halving the range of integers. So that this
reads few numbers, candidates are gathered first: the maxima and sums of the row's chunks say how
far down the cut can lie. Every sum has a fixed order, so a row's bits never depend on others.
Knows no noise and draws nothing.
"""

import triton
import triton.language as tl

from specedge_kernels.gpu.noise import number, ordered

LOWEST = tl.constexpr(-0x7F800001)  # the key of -inf
LARGEST = tl.constexpr(3.4028234663852886e38)
BLOCK = tl.constexpr(1024)  # candidates looked at together


@triton.jit
def counts(top_k, vocabulary):
    """Whether top-k leaves anything out; else top-p counts the whole row."""
    return (top_k > 0) & (top_k < vocabulary)


@triton.jit
def heat_of(temperature, row):
    """The temperature of a row, at most the largest number: -inf divided by infinity is none."""
    heat = tl.load(temperature + row)
    return tl.where(heat > LARGEST, LARGEST, heat)


@triton.jit
def logits_of(logits, mask, mask_row, row, vocabulary, HAS_MASK: tl.constexpr):
    """A row of logits: the numbers, its mask's words, and the number of its mask, -1 for none."""
    chosen = tl.full([], -1, tl.int32)
    if HAS_MASK:
        chosen = tl.load(mask_row + row)
        mask += chosen.to(tl.int64) * tl.cdiv(vocabulary, 32)
    return logits + row * vocabulary, mask, chosen


@triton.jit
def masked(x, words, chosen, index, end, HAS_MASK: tl.constexpr):
    """-inf for tokens that the mask forbids: bit t % 32 of word t / 32 allows token t."""
    if HAS_MASK:
        inside = index < tl.where(chosen >= 0, end, 0)
        word = tl.load(words + index // 32, mask=inside, other=-1)
        x = tl.where(((word >> (index % 32)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit
def divided(values, index, end, divisor):
    """Values / T as the specification rounds it; -inf from `end` on."""
    x = tl.load(values + index, mask=index < end, other=float("-inf"))
    return tl.div_rn(x, divisor)


@triton.jit
def scaled(values, index, end, divisor, HAS_MASK: tl.constexpr):
    """Values as from `logits_of` / T; -inf from `end` on and for what their mask forbids."""
    x = divided(values[0], index, end, divisor)
    return masked(x, values[1], values[2], index, end, HAS_MASK)


@triton.jit
def measure_above(values, n, divisor, top, key, WEIGHED: tl.constexpr, HAS_MASK: tl.constexpr):
    """How many of n values lie above the key, or the sum of their exp(value - top), float64."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = scaled(values, index, n, divisor, HAS_MASK)
        weight = tl.full([BLOCK], 1.0, tl.float64)
        if WEIGHED:
            weight = weight_of(x, top)
        total += tl.where((index < n) & (ordered(x) > key), weight, 0.0)
    return tl.sum(total, 0)


@triton.jit
def count_at(values, n, divisor, key, HAS_MASK: tl.constexpr):
    """How many of n values lie at the key."""
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        index = start + tl.arange(0, BLOCK)
        equal = ordered(scaled(values, index, n, divisor, HAS_MASK)) == key
        total += ((index < n) & equal).to(tl.int32)
    return tl.sum(total, 0)


@triton.jit
def weight_of(x, top):
    return tl.exp(x.to(tl.float64) - top)


@triton.jit
def average(low, high):
    """Rounded down, and without the overflow of low + high."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def cut_key(
    values,
    n,
    divisor,
    top,
    low,
    high,
    wanted,
    WEIGHED: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """The smallest key of low .. high above which less than `wanted` lies; high if none."""
    low -= 1
    while low + 1 < high:
        middle = average(low, high)
        if measure_above(values, n, divisor, top, middle, WEIGHED, HAS_MASK) >= wanted:
            low = middle
        else:
            high = middle
    return high


@triton.jit
def nucleus_floor(
    maxima, sums, keys, chunks, divisor, top, top_p, CHUNKS: tl.constexpr, CHUNK: tl.constexpr
):
    """A key that top-p cannot cut below, and the row's sum of exp(value - top).

    Below a value v lies at most: all of a chunk whose maximum is below v; of any other chunk all
    but its maximum, and no more than CHUNK tokens of value v.
    """
    chunk = tl.arange(0, CHUNKS)
    largest = weight_of(divided(maxima, chunk, chunks, divisor), top)
    whole = tl.load(sums + chunk, mask=chunk < chunks, other=0.0) * largest
    total = tl.sum(whole, 0)
    # Less the rounding of these sums.
    spare = (1 - top_p.to(tl.float64)) * total * (1 - 1e-9)
    low, high = tl.full([], LOWEST, tl.int32), ordered(top) + 1
    while low + 1 < high:
        middle = average(low, high)
        most = tl.minimum(whole - largest, CHUNK * weight_of(number(middle), top))
        if tl.sum(tl.where(keys < middle, whole, most), 0) <= spare:
            low = middle
        else:
            high = middle
    return low, total


@triton.jit
def next_chunk(keys, low, after, CHUNKS: tl.constexpr):
    """The first chunk beyond `after` whose maximum reaches the key `low`; CHUNKS if none."""
    chunk = tl.arange(0, CHUNKS)
    return tl.min(tl.where((keys >= low) & (chunk > after), chunk, CHUNKS), 0)


@triton.jit
def gather(
    logits,
    keys,
    vocabulary,
    divisor,
    low,
    found,
    capacity,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Store scaled logits of at least the key `low`, by rising token; returns their number."""
    n = vocabulary * 0
    chunk = next_chunk(keys, low, -1, CHUNKS)
    while chunk < CHUNKS:
        index = chunk * CHUNK + tl.arange(0, CHUNK)
        x = scaled(logits, index, vocabulary, divisor, HAS_MASK)
        hit = ((index < vocabulary) & (ordered(x) >= low)).to(tl.int32)
        place = n + tl.cumsum(hit, 0) - 1
        tl.store(found + place, x, mask=(hit > 0) & (place < capacity))
        n += tl.sum(hit, 0)
        chunk = next_chunk(keys, low, chunk, CHUNKS)
    # What one thread stored the others read.
    tl.debug_barrier()
    return n


@triton.jit
def last_tie(
    logits,
    keys,
    vocabulary,
    divisor,
    key,
    ties,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """The token that is number `ties` of those whose key is `key`."""
    seen, last = vocabulary * 0, vocabulary
    chunk = next_chunk(keys, key, -1, CHUNKS)
    while chunk < CHUNKS:
        index = chunk * CHUNK + tl.arange(0, CHUNK)
        x = scaled(logits, index, vocabulary, divisor, HAS_MASK)
        equal = ((index < vocabulary) & (ordered(x) == key)).to(tl.int32)
        place = seen + tl.cumsum(equal, 0)
        last = tl.minimum(last, tl.min(tl.where((equal > 0) & (place == ties), index, last), 0))
        seen += tl.sum(equal, 0)
        chunk = next_chunk(keys, key, tl.where(seen < ties, chunk, CHUNKS), CHUNKS)
    return last


@triton.jit
def tokens_of(wanted, weight, most):
    """How many tokens of one weight together weigh what is wanted, `most` at most."""
    enough = wanted < weight * most
    return tl.where(enough, tl.ceil(wanted / tl.where(enough, weight, 1.0)), most)


@triton.jit
def raised(key, ties, top, min_p, vocabulary):
    """The cut raised to min-p; the likeliest token stays whatever the limits."""
    if min_p > 0:
        lowest = top + tl.log(min_p.to(tl.float64)).to(tl.float32)
        if lowest > top:
            key, ties = ordered(top), ties * 0
        elif ordered(lowest) > key:
            key, ties = ordered(lowest), ties * 0 + vocabulary
    return key, tl.maximum(ties, 1.0)


@triton.jit
def allowed(
    logits,  # as from `logits_of`
    maxima,  # [chunks]
    sums,  # [chunks]
    found,  # [capacity]
    vocabulary,
    capacity,
    divisor,
    top,
    top_k,
    top_p,
    min_p,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """(key, last): kept are tokens above the key, and of those at the key ids up to `last`."""
    chunk, chunks = tl.arange(0, CHUNKS), tl.cdiv(vocabulary, CHUNK)
    keys = tl.where(chunk < chunks, ordered(divided(maxima, chunk, chunks, divisor)), LOWEST - 1)
    high, by_count, by_weight = ordered(top), counts(top_k, vocabulary), top_p < 1
    key, ties = tl.full([], LOWEST, tl.int32), tl.full([], 1.0, tl.float64) * vocabulary
    # The list that is searched: the row, or its candidates, which are divided already.
    values, n, step, total = logits, vocabulary, divisor, ties
    if by_count | by_weight:
        if by_count:
            # So many chunks have a token of at least this value.
            tops = (maxima, logits[1], logits[2])
            key = cut_key(tops, chunks, divisor, top, key, high, top_k, False, False)
        else:
            key, total = nucleus_floor(
                maxima, sums, keys, chunks, divisor, top, top_p, CHUNKS, CHUNK
            )
        n_found = gather(
            logits, keys, vocabulary, divisor, key, found, capacity, CHUNKS, CHUNK, HAS_MASK
        )
        if n_found <= capacity:
            # Of candidates none is forbidden.
            values = (found, logits[1], tl.full([], -1, tl.int32))
            n, step = n_found, 1.0
        if by_count:
            key = cut_key(values, n, step, top, key, high, top_k, False, HAS_MASK)
            ties = top_k - measure_above(values, n, step, top, key, False, HAS_MASK)
            total = ties * weight_of(number(key), top)
            total += measure_above(values, n, step, top, key, True, HAS_MASK)
        if by_weight:
            wanted = top_p.to(tl.float64) * total
            key = cut_key(values, n, step, top, key, high, wanted, True, HAS_MASK)
            # At the cut of top-k these are no more than top-k left, since top_p < 1.
            wanted -= measure_above(values, n, step, top, key, True, HAS_MASK)
            ties = tokens_of(wanted, weight_of(number(key), top), vocabulary)
    key, ties = raised(key, ties, top, min_p, vocabulary)
    ties, last, tied = ties.to(tl.int32), vocabulary, vocabulary * 0
    if ties < vocabulary:
        tied = count_at(values, n, step, key, HAS_MASK)
    if tied > ties:
        last = last_tie(logits, keys, vocabulary, divisor, key, ties, CHUNKS, CHUNK, HAS_MASK)
    return key, last

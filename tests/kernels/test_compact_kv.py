import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels import host
from tests.kernels.cases import SHAPES, int32, make_batch, parents_of


def make_case(dtype, page_size, layout, dim=24, seed=0):
    """Four requests over shuffled pages; paths that jump, that need no move, and an empty one."""
    generator = torch.Generator().manual_seed(seed)
    paths = [[0, 2, 3, 40], [], [0, 1, 2], [1, 2, 5, 6, 7, 63]]
    prefixes = int32([17, 3, 64, 0])
    pages = -(-(64 + 64) // page_size)
    n_pages = len(paths) * pages + 2
    table = torch.randperm(n_pages, generator=generator)[: len(paths) * pages].int()
    shape = (3, 2, n_pages, page_size, 2, dim)
    if layout == "HND":
        shape = (3, 2, n_pages, 2, page_size, dim)
    kv = torch.randint(-100, 100, shape, generator=generator).to(dtype)
    path = torch.full((len(paths), 8), -5, dtype=torch.int32)
    for b, nodes in enumerate(paths):
        path[b, : len(nodes)] = int32(nodes)
    return (
        kv.transpose(3, 4) if layout == "HND" else kv,
        table.view(len(paths), pages).contiguous(),
        prefixes,
        path,
        int32([len(nodes) for nodes in paths]),
    )


LAYOUTS = [(1, "NHD"), (16, "NHD"), (32, "HND"), (64, "NHD")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("page_size", "layout"), LAYOUTS)
def test_moves_equal_the_reference(dtype, page_size, layout):
    kv, *tables = make_case(dtype, page_size, layout)
    want = kv.clone()
    reference.compact_kv(want, *tables)
    kernels.compact_kv(kv, *tables)
    assert torch.equal(kv, want)


@pytest.mark.parametrize("parts", [1, 3])
def test_any_number_of_parts_moves(parts):
    kv, *tables = make_case(torch.float32, 16, "NHD")
    kv = kv.flatten(0, 1).unflatten(0, (-1, parts)).contiguous()
    want = kv.clone()
    reference.compact_kv(want, *tables)
    kernels.compact_kv(kv, *tables)
    assert torch.equal(kv, want)


def test_a_long_path_may_read_what_lies_under_other_targets():
    kv = torch.arange(200.0).view(1, 1, 50, 4, 1, 1).repeat(1, 2, 1, 1, 1, 1)
    path = torch.arange(0, 120, 2, dtype=torch.int32)[None]
    table = torch.arange(50, dtype=torch.int32)[None]
    kernels.compact_kv(kv, table, int32([7]), path, int32([60]))
    assert kv.view(2, 200)[0, 7:67].tolist() == [7.0 + 2 * j for j in range(60)]


def walk(parents, tokens, target):
    """The accepted path by following the target from child to child; siblings are distinct."""
    path = [0]
    while True:
        children = [j for j, parent in enumerate(parents) if parent == path[-1]]
        accepted = [j for j in children if tokens[j] == target[path[-1]]]
        if not accepted:
            return path
        path += accepted


def test_verdicts_drive_the_moves_without_a_look_from_the_host():
    generator = torch.Generator().manual_seed(5)
    trees = [
        parents_of(shape, n, generator) for shape, n in zip(SHAPES, (9, 5, 31, 12, 40), strict=True)
    ]
    batch = make_batch(trees, [0, 7, 16, 33, 1], 8, generator)
    # Siblings differ; every node continues with the token of one of its children, if it has any.
    tokens = torch.cat([torch.arange(len(tree)) for tree in trees])
    target, paths = torch.full_like(tokens, -9), []
    for b, tree in enumerate(trees):
        first = int(batch.offsets[b])
        for j, parent in enumerate(tree):
            if parent >= 0 and torch.rand((), generator=generator) < 0.8:
                target[first + parent] = j
        paths.append(walk(tree, range(len(tree)), target[first:].tolist()))
    assert max(map(len, paths)) > 3
    kv = torch.arange(2.0 * 2 * batch.used.numel()).view(2, 2, *batch.used.shape, 1, 1)
    want = kv.clone()
    for b, path in enumerate(paths):
        for j, node in enumerate(path):
            to, source = int(batch.prefix_lens[b]) + j, int(batch.prefix_lens[b]) + node
            moved = kv[:, :, batch.page_table[b, source // 8], source % 8]
            want[:, :, batch.page_table[b, to // 8], to % 8] = moved

    def step(kv, tokens, target):
        path, lens, bonus = kernels.verify(tokens, batch.ancestors, batch.offsets, target, 40)
        kernels.compact_kv(kv, batch.page_table, batch.prefix_lens, path, lens)
        return lens, bonus

    # A graph without a break is a step in which no value was read by Python.
    lens, _ = torch.compile(step, fullgraph=True, backend="aot_eager")(kv, tokens, target)
    assert lens.tolist() == [len(path) for path in paths]
    assert torch.equal(kv, want)


def test_no_requests():
    kv = torch.randn(1, 2, 3, 4, 1, 8)
    before = kv.clone()
    empty = torch.zeros(0, 4, dtype=torch.int32)
    kernels.compact_kv(kv, empty, int32([]), empty, int32([]))
    assert torch.equal(kv, before)


@pytest.mark.parametrize(
    ("index", "where", "value", "message"),
    [
        (1, (0, 1), 1000, "request 0: expected page ids"),
        (2, 3, -1, "request 3: expected a prefix length of 0 or more"),
        (2, 0, 1000, "request 0: expected pages for 1041 tokens"),
        (
            3,
            (0, 2),
            2,
            "request 0: expected path nodes to increase from 0 or more, got 2 at index 2",
        ),
        (3, (0, 0), -1, "got -1 at index 0"),
        (4, 0, 9, r"request 0: expected an accepted length in 0 \.\. 8, got 9"),
    ],
)
def test_wrong_values_are_named_and_nothing_is_moved(index, where, value, message):
    case = make_case(torch.float32, 16, "NHD")
    before = case[0].clone()
    case[index][where] = value
    with pytest.raises(ValueError, match=message):
        kernels.compact_kv(*case)
    assert torch.equal(case[0], before)


def test_wrong_metadata_is_named():
    kv, *tables = make_case(torch.float32, 16, "NHD")
    with pytest.raises(ValueError, match=r"kv: expected shape \[L, X, P, S, Hk, D\], got"):
        kernels.compact_kv(kv[:, 0], *tables)
    with pytest.raises(ValueError, match="kv: expected D contiguous"):
        kernels.compact_kv(kv.transpose(4, 5), *tables)


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory):
    return host.build("compact_kv", tmp_path_factory.mktemp("compact_kv"))


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(("page_size", "layout"), LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "dim", "word"), [("f4", 24, 16), ("f2", 20, 8), ("f2", 3, 2), ("i1", 5, 1)]
)
def test_the_cuda_body_gives_the_same_on_a_cpu(
    host_kernel, backwards, page_size, layout, dtype, dim, word
):
    types = {"f4": torch.float32, "f2": torch.bfloat16, "i1": torch.int8}
    kv, table, prefixes, path, accepted = make_case(types[dtype], page_size, layout, dim)
    want = kv.clone()
    reference.compact_kv(want, table, prefixes, path, accepted)
    size = kv.element_size()
    storage = kv if layout == "NHD" else kv.transpose(3, 4)
    n_bytes = storage.numel() * size
    sizes = [kv.shape[0], table.shape[0], n_bytes, backwards, kv.shape[4], page_size]
    sizes += [table.shape[1], path.shape[1], word, dim * size // word]
    sizes += [*(stride * size for stride in kv.stride()[:5]), kv.shape[1]]
    tables = b"".join(host.raw(tensor) for tensor in (table, prefixes, path, accepted))
    written = host.run(host_kernel, host.numbers(*sizes), tables, host.raw(storage))
    moved = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(types[dtype])
    got = moved.view(storage.shape)
    assert torch.equal(got if layout == "NHD" else got.transpose(3, 4), want)

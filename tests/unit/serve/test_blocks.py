"""The block budget: nothing leaks, nothing is given twice, and a hash stands for a whole prefix."""

from hypothesis import given
from hypothesis import strategies as st

from mainspring.serve.engine.blocks import BlockPool, block_count, chain_hashes

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["hold", "release", "cache", "find"]), st.integers(0, 30)), max_size=200
)


@given(total=st.integers(1, 20), operations=OPERATIONS)
def test_the_pool_never_promises_more_blocks_than_there_are(total: int, operations: list[tuple[str, int]]) -> None:
    pool = BlockPool(total)
    held: list[int] = []
    places: dict[bytes, int] = {}
    for name, number in operations:
        digest = bytes([number])
        if name == "hold" and number <= pool.available:
            pool.hold(number)
            held.append(number)
        elif name == "release" and held:
            pool.release(held.pop(number % len(held)))
        elif name == "cache":
            place = pool.cache(digest)
            if place is not None:
                places = {key: value for key, value in places.items() if value != place} | {digest: place}
        elif name == "find":
            found = pool.find([digest])
            assert found in ([], [places.get(digest)])
        assert pool.held == sum(held)
        assert pool.held + pool.cached <= total
        assert 0 <= pool.available <= total
        live = [pool.find([key])[0] for key in places if pool.find([key])]
        assert len(set(live)) == len(live) == pool.cached
        assert all(0 <= place < total for place in live)
    for count in held:
        pool.release(count)
    assert pool.available == total


def test_cached_blocks_give_way_to_sequences_in_least_recently_used_order() -> None:
    pool = BlockPool(3)
    for digest in (b"a", b"b", b"c"):
        pool.cache(digest)
    pool.find([b"a"])
    pool.hold(2)
    assert (pool.find([b"a"]) != [], pool.find([b"b"]), pool.find([b"c"])) == (True, [], [])


def test_only_the_unbroken_beginning_of_a_prefix_is_found() -> None:
    pool = BlockPool(4)
    first, third = pool.cache(b"1"), pool.cache(b"3")
    assert first is not None
    assert third is not None
    assert pool.find([b"1", b"2", b"3"]) == [first]


def test_a_pool_full_of_sequences_caches_nothing() -> None:
    pool = BlockPool(2)
    pool.hold(2)
    assert pool.cache(b"x") is None


@given(st.lists(st.integers(0, 2**31), max_size=40), st.lists(st.integers(0, 2**31), max_size=40), st.integers(1, 8))
def test_hashes_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int], size: int) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    pairs = zip(chain_hashes(left, size), chain_hashes(right, size), strict=False)
    assert sum(a == b for a, b in pairs) == common // size


@given(st.lists(st.integers(0, 1000), max_size=50), st.integers(1, 8), st.integers(0, 50))
def test_hashes_can_be_continued(tokens: list[int], size: int, cut: int) -> None:
    known = chain_hashes(tokens[:cut], size)
    assert chain_hashes(tokens, size, known) == chain_hashes(tokens, size)
    assert len(chain_hashes(tokens, size)) == len(tokens) // size
    assert block_count(len(tokens), size) - len(tokens) // size in (0, 1)

"""Permutations: a function of the key alone, for ever."""

from jumpahead.text.permutation import fixed_permutation


def test_permutations_never_change():
    assert fixed_permutation(8, 3, 5).tolist() == [3, 2, 7, 5, 6, 0, 1, 4]
    assert sorted(fixed_permutation(1000, 7).tolist()) == list(range(1000))
    assert fixed_permutation(50, 1, 2).tolist() != fixed_permutation(50, 1, 2, 0).tolist()

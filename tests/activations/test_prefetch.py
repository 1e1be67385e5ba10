"""Prefetching in a thread: the same values in the same order, at most `depth` in advance, and no thread left behind."""

import itertools
import threading
import time

import pytest

from jumpahead.activations.prefetch import THREAD_NAME, prefetch_in_thread


class Squares:
    """Computes squares, and records keys and threads; at the key `slow` it waits for `go`."""

    def __init__(self, slow=None):
        self.slow, self.made, self.threads, self.go = slow, [], set(), threading.Event()

    def __call__(self, key):
        self.threads.add(threading.get_ident())
        self.made.append(key)
        assert key != self.slow or self.go.wait(timeout=20)
        return key * key


def becomes_true(condition):
    """Return whether the condition becomes true within two seconds."""
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.005)
    return False


def no_threads_left():
    return becomes_true(lambda: not [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)])


@pytest.mark.parametrize("count", [0, 3, 50])
def test_the_same_values_in_the_same_order(count):
    make = Squares()
    assert list(prefetch_in_thread(make, range(17), count)) == [key * key for key in range(17)]
    assert make.made == list(range(17))
    assert len(make.threads) == 1
    assert threading.get_ident() not in make.threads
    assert no_threads_left()


def test_at_most_depth_values_are_computed_in_advance():
    make = Squares()
    values = prefetch_in_thread(make, itertools.count(), 3)
    for taken in range(1, 6):
        next(values)
        assert becomes_true(lambda taken=taken: len(make.made) == taken + 3)
    time.sleep(0.05)
    assert make.made == list(range(5 + 3))
    values.close()
    assert no_threads_left()


def test_nothing_is_computed_before_the_first_value_is_requested():
    make = Squares()
    values = prefetch_in_thread(make, itertools.count(), 3)
    time.sleep(0.02)
    assert not make.made
    values.close()
    assert no_threads_left()


def test_closing_drops_pending_values_and_waits_for_the_current_one():
    make = Squares(slow=2)
    values = prefetch_in_thread(make, itertools.count(), 30)
    assert next(values) == 0
    assert becomes_true(lambda: make.made == [0, 1, 2])
    threading.Timer(0.05, make.go.set).start()
    values.close()
    assert make.go.is_set()
    assert no_threads_left()
    assert make.made == [0, 1, 2]


class CustomError(Exception):
    pass


def test_an_exception_is_raised_at_its_keys_turn_with_its_type():
    def make(key):
        if key == 4:
            raise CustomError("four")
        return key

    values = prefetch_in_thread(make, itertools.count(), 2)
    assert [next(values) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(CustomError, match="four"):
        next(values)
    assert no_threads_left()


@pytest.mark.parametrize("error", [CustomError, KeyboardInterrupt])
def test_a_consumer_that_fails_leaves_no_thread(error):
    def use():
        for value in prefetch_in_thread(Squares(), itertools.count(), 5):
            if value == 9:
                raise error

    with pytest.raises(error):
        use()
    assert no_threads_left()

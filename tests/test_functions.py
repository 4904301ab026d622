"""Which callables and classes may be sent, with which globals they arrive, and that they do not pile up."""

import functools
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import processes
import pytest
import scripts
import tasks

from ipc import _core
from pool import Pool

pytestmark = pytest.mark.timeout(30)


def _decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return [fn(*args)]

    return wrapper


@_decorate
def decorated(x: int) -> int:
    return x + 1


@functools.lru_cache
def cached(x: int) -> int:
    return x * x


def factorial(n: int) -> int:
    return 1 if n == 0 else n * factorial(n - 1)


def _make_adder(n: int) -> Callable[[int], int]:
    def fibonacci(k: int) -> int:
        return k if k < 2 else fibonacci(k - 1) + fibonacci(k - 2)

    return lambda x: fibonacci(x) + n


class Maker:
    @staticmethod
    def static(x: int) -> int:
        return -x

    @classmethod
    def named(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


@pytest.mark.parametrize(
    ("fn", "argument", "value"),
    [
        (lambda x: x + 1, 1, 2),
        (_make_adder(5), 10, 60),
        (functools.partial(tasks.add, 1, c=5), 2, 8),
        (functools.partial(lambda a, b: a - b, 10), 3, 7),
        (tasks.Scale(3).method, 5, 15),
        (tasks.Scale(3), 5, 15),
        (tasks.UnhashableScale(3), 5, 15),
        ("a,b".split, ",", ["a", "b"]),
        (Maker.static, 3, -3),
        (Maker.named, 3, ("Maker", 3)),
        (abs, -3, 3),
        (math.sqrt, 9.0, 3.0),
        (len, [1, 2], 2),
        (str.upper, "a", "A"),
        (int, "12", 12),
        (operator.itemgetter(1), [1, 2], 2),
        (numpy.sqrt, 16.0, 4.0),
        (numpy.linalg.norm, [3.0, 4.0], 5.0),
        (decorated, 3, [4]),
        (factorial, 20, math.factorial(20)),
        (cached, 4, 16),
    ],
)
def test_any_callable_may_be_sent(pool: Pool, fn: Callable[[Any], Any], argument: Any, value: Any) -> None:
    assert pool.submit(fn, argument).result() == value
    assert list(pool.map(fn, [argument] * 3)) == [value] * 3
    assert list(pool.map(fn, [argument] * 3, chunksize=2)) == [value] * 3
    assert list(pool.imap(fn, [argument] * 3)) == [value] * 3


def test_callables_with_state_are_sent_as_they_are_now(pool: Pool) -> None:
    scale, cell = tasks.Scale(2), [1]
    unhashable = tasks.UnhashableScale(2)

    def closure(x: int) -> int:
        return x + cell[0]

    for n in range(2, 6):
        scale.factor = unhashable.factor = cell[0] = n
        for call in (pool.submit(scale, 10), pool.submit(scale.method, 10), pool.submit(unhashable, 10)):
            assert call.result() == 10 * n
        assert pool.submit(closure, 10).result() == 10 + n
        assert list(pool.imap(scale, [1, 2])) == [n, 2 * n]
        assert list(pool.imap(unhashable, [1, 2])) == [n, 2 * n]
        assert list(pool.map(closure, [1, 2])) == [1 + n, 2 + n]


def test_what_waits_keeps_the_function_that_it_was_submitted_with(pool: Pool, gate: tasks.Gate) -> None:
    running = [pool.submit(tasks.hold, gate.path) for _ in range(2)]
    gate.await_start(2)
    cell = [0]
    futures = []
    for n in range(2000):  # more than there are rows
        cell[0] = n
        futures.append(pool.submit(lambda: cell[0]))
    gate.open(2)
    assert [future.result() for future in futures] == list(range(2000))
    assert [future.result() for future in running] == [None] * 2


# ---- nothing piles up


def _units(pool: Pool) -> int:
    return _core.counters(pool._client.segment)["units"]


@pytest.mark.parametrize("call", ["submit", "imap", "changing global"])
def test_thousands_of_functions_do_not_pile_up(pool: Pool, call: str) -> None:
    cell = [0]

    def reads_cell() -> int:
        return cell[0]

    for n in range(3000):
        if call == "submit":
            assert pool.submit(lambda n=n: n).result() == n
        elif call == "imap":
            assert list(pool.imap(lambda x, n=n: x + n, [1, 2])) == [1 + n, 2 + n]
        else:
            cell[0] = n
            assert pool.submit(reads_cell).result() == n
        assert _units(pool) <= 600
    assert len(pool._client.functions._stored) <= 512


def test_large_functions_do_not_pile_up_either(pool: Pool) -> None:
    before = _units(pool)
    for n in range(100):
        data = numpy.full(1 << 20, n % 256, numpy.uint8)
        assert pool.submit(lambda data=data: int(data[-1])).result() == n
    assert _units(pool) - before <= 80 * 17


def test_a_dropped_function_can_be_sent_again(pool: Pool) -> None:
    functions = [lambda n=n: n for n in range(700)]
    for _ in range(2):
        assert [pool.submit(fn).result() for fn in functions] == list(range(700))
    maps = [pool.imap(lambda x, n=n: x + n, range(20), chunksize=1, buffersize=1) for n in range(600)]  # all begun
    assert [next(results) for results in maps] == list(range(600))
    for fn in functions:
        pool.submit(fn).result()
    assert [list(results) for results in maps] == [[x + n for x in range(1, 20)] for n in range(600)]


# ---- __main__


def test_functions_of_main_see_its_globals_as_they_are_now(tmp_path: Path) -> None:
    script = """
        from pool import Pool

        factor, table = 1, {"a": 1}

        def scale(x):
            return factor * x

        def look(key):
            return table.get(key)

        def helper(x):
            return x + 1

        def through_helper(x):
            return helper(x)

        if __name__ == "__main__":
            with Pool(2) as pool:
                pool.start()
                for factor in (1, 2, 1000, 1000, 2):
                    assert pool.submit(scale, 3).result() == 3 * factor, factor
                    assert list(pool.map(scale, [1, 2])) == [factor, 2 * factor]
                    assert list(pool.imap(scale, [1, 2])) == [factor, 2 * factor]
                for n in range(5):
                    table["a"] = n
                    assert pool.submit(look, "a").result() == n
                    assert list(pool.imap(look, ["a"] * 3)) == [n] * 3
                assert pool.submit(through_helper, 1).result() == 2

                def helper(x):
                    return x + 100

                assert pool.submit(through_helper, 1).result() == 101

                def scale(x):
                    return "redefined"

                assert pool.submit(scale, 3).result() == "redefined"
                assert list(pool.map(scale, [1])) == ["redefined"]
            print("ok")
    """
    assert scripts.run(tmp_path, script).stdout == "ok\n"


def test_with_an_initializer_functions_of_main_use_the_globals_of_the_worker(tmp_path: Path) -> None:
    """As in multiprocessing.Pool: the commonest use of an initializer."""
    script = """
        from functools import partial
        from pool import Pool

        model = None
        cache = {}

        def load(name):
            global model, unknown_here
            model = unknown_here = name
            cache[name] = len(name)

        def use(x):
            return helper(x), unknown_here, cache

        def helper(x):
            return x, model

        def changed(x):
            return "old"

        expected = ((1, "net"), "net", {"net": 3})
        with Pool(2, initializer=load, initargs=("net",)) as pool:
            assert pool.submit(use, 1).result() == expected
            assert list(pool.imap(use, [1, 1])) == [expected] * 2
            assert pool.submit(partial(use, 1)).result() == expected
            assert pool.submit(lambda x: use(x), 1).result() == expected
            old = changed

            def changed(x):
                return "new"

            def later(x):
                return x, model

            assert pool.submit(changed, 1).result() == "new"
            assert pool.submit(old, 1).result() == "old"
            model = "mine"
            assert pool.submit(later, 1).result() == (1, "mine")  # sent with what it uses
            assert pool.submit(use, 1).result() == expected
        assert cache == {}
        with Pool(0, initializer=load, initargs=("net",)) as pool:
            assert pool.submit(use, 1).result() == expected
        print("ok")
        """
    assert scripts.run(tmp_path, script).stdout == "ok\n"


def test_classes_of_main_made_after_the_start_keep_their_identity(tmp_path: Path) -> None:
    script = """
        import dataclasses, enum
        from pool import Pool, errors

        class Before:
            def __init__(self, x):
                self.x = x

        def make_before(x):
            return Before(x)

        if __name__ == "__main__":
            with Pool(2) as pool:
                pool.start()

                class Late(Before):
                    pass

                class Later(Exception):
                    pass

                @dataclasses.dataclass(frozen=True)
                class Point:
                    x: int
                    y: int

                class Colour(enum.Enum):
                    RED = 1

                def make(x):
                    return Late(x)

                def fails(x):
                    raise Later(x)

                def is_late(x):
                    return isinstance(x, Late)

                for call in (lambda f, x: pool.submit(f, x).result(), lambda f, x: next(pool.imap(f, [x])),
                             lambda f, x: next(pool.map(f, [x], chunksize=2))):
                    assert type(call(make_before, 1)) is Before
                    assert type(call(make, 1)) is Late
                    assert call(make, 7).x == 7
                    assert call(is_late, Late(1)) is True
                    assert call(lambda p: Point(p.y, p.x), Point(1, 2)) == Point(2, 1)
                    assert call(lambda c: c is Colour.RED, Colour.RED) is True
                    assert call(lambda c: c, Colour.RED) is Colour.RED
                    try:
                        call(fails, 5)
                    except Later as error:
                        assert error.args == (5,)
                    else:
                        raise AssertionError

                class Before:
                    again = True

                assert type(pool.submit(lambda x: x, Before()).result()) is Before
                assert type(pool.submit(lambda: Before()).result()) is Before
            print("ok")
    """
    assert scripts.run(tmp_path, script).stdout == "ok\n"


def test_errors_in_functions_of_main_show_their_lines(tmp_path: Path) -> None:
    script = """
        from pool import Pool

        def fails(x):
            return 1 / x  # here

        if __name__ == "__main__":
            with Pool(1) as pool:
                pool.submit(fails, 0).result()
    """
    stderr = scripts.run(tmp_path, script, code=1).stderr
    assert "return 1 / x  # here" in stderr
    assert "ZeroDivisionError: division by zero" in stderr


def test_names_of_functions_are_those_that_people_know(pool: Pool) -> None:
    for fn, name in (
        (tasks.square, "tasks.square"),
        (abs, "builtins.abs"),
        (tasks.Scale(1).method, "tasks.Scale.method"),
        (tasks.Scale(1), "tasks.Scale"),
        (tasks.UnhashableScale(1), "tasks.UnhashableScale"),
        (functools.partial(tasks.square), "tasks.square"),
        (decorated, "test_functions.decorated"),
    ):
        for once in (False, True):
            assert pool._client.function(fn, once=once).name == name
    processes.wait_until(lambda: pool.submit(tasks.square, 2).result() == 4, "usable")


def test_a_bound_builtin_is_sent_with_its_object_as_it_is_now(pool: Pool) -> None:
    table = {1: "a"}
    assert pool.submit(table.get, 1).result() == "a"
    table[1] = "b"
    assert pool.submit(table.get, 1).result() == "b"
    numbers = [1, 2]
    assert list(pool.imap(numbers.count, [2])) == [1]
    numbers.append(2)
    assert list(pool.imap(numbers.count, [2])) == [2]

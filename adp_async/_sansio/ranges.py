"""Arithmetic of ranges: pairs of a first and a last (exclusive), as lists that are sorted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted *ranges*, with those joined that meet.

    >>> joined([(0, 10), (10, 12), (20, 30)])
    [(0, 12), (20, 30)]
    """
    whole: list[tuple[int, int]] = []
    for first, last in ranges:
        if whole and first <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(last, whole[-1][1]))
        else:
            whole.append((first, last))
    return whole


def without(ranges: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """*ranges* without the numbers from *first* to *last*.

    >>> without([(0, 10), (12, 20)], 4, 14)
    [(0, 4), (14, 20)]
    """
    left = [(start, min(end, first)) for start, end in ranges]
    right = [(max(start, last), end) for start, end in ranges]
    return sorted((start, end) for start, end in left + right if start < end)


def numbers_of(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Every number in *ranges*.

    >>> list(numbers_of([(0, 2), (5, 6)]))
    [0, 1, 5]
    """
    return (number for first, last in ranges for number in range(first, last))


def numbers_at(ranges: Iterable[tuple[int, int]], positions: Iterable[int]) -> list[int]:
    """The numbers of *ranges* at *positions*, counted from 0.

    >>> numbers_at([(0, 2), (5, 9)], [1, 2])
    [1, 5]
    """
    everyone = list(numbers_of(ranges))
    return [everyone[at] for at in positions]


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted *numbers* as ranges.

    >>> ranges_of([0, 1, 5])
    [(0, 2), (5, 6)]
    """
    return joined([(number, number + 1) for number in numbers])


def split(
    ranges: Sequence[tuple[int, int]], count: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first *count* numbers of *ranges*, and the others.

    >>> split([(0, 4), (10, 12)], 5)
    ([(0, 4), (10, 11)], [(11, 12)])
    >>> split([(0, 4), (10, 12)], 2)
    ([(0, 2)], [(2, 4), (10, 12)])
    """
    before: list[tuple[int, int]] = []
    after: list[tuple[int, int]] = []
    for first, last in ranges:
        middle = min(last, first + max(0, count))
        count -= middle - first
        if first < middle:
            before.append((first, middle))
        if middle < last:
            after.append((middle, last))
    return before, after

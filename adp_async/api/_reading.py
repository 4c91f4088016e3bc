"""What was found, as a list that shows itself as a table, and as a DataFrame of pandas."""

from __future__ import annotations

from typing import Any, TypeVar

Item = TypeVar("Item")


class Found(list[Item]):
    """A list; a notebook shows it as a table with a row for each item."""

    def _repr_html_(self) -> str:
        from adp_async._html import table

        return table(_rows(self)) if self else "nothing found"


def frame(found: list[Any]) -> Any:
    """A `pandas.DataFrame` with a row for each item; ImportError without pandas."""
    try:
        import pandas
    except ImportError:
        message = "to_pandas() needs pandas: pip install pandas"
        raise ImportError(message) from None
    return pandas.DataFrame(_rows(found))


def _rows(found: list[Any]) -> list[dict[str, object]]:
    return [item._row() for item in found]

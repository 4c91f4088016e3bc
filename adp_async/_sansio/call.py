"""One call of an operation, with its arguments checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from attrs import evolve, frozen

from adp_async._sansio.arguments import checked_options, named
from adp_async._sansio.endpoints import check_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._sansio.endpoints import Endpoint


@frozen
class Call:
    """An operation, where its arguments go, and *options*, those of `CallOptions`."""

    endpoint: Endpoint
    path: Mapping[str, str]
    query: Mapping[str, object]
    body: object
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        **options: Any,
    ) -> Self:
        """A call from a caller's arguments; TypeError or ValueError for invalid ones."""
        check_endpoint(endpoint)
        checked = checked_options(options, endpoint.operation)
        return cls(endpoint, named(path, "path"), named(query, "query"), body, checked)

    def with_options(self, **options: Any) -> Self:
        """The same call with *options* added or replaced."""
        return evolve(self, options={**self.options, **options})

"""Logged models: models that runs wrote, registered or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Family, Listing
from adp_async.entities.logged_models import LoggedModel, LoggedModelPage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.logged_models import LoggedModelOrder


class LoggedModels(Family):
    """The operations on logged models."""

    __slots__ = ()

    def search(
        self,
        *,
        experiment_ids: Sequence[str] = (),
        filter_string: str | None = None,
        order_by: Sequence[LoggedModelOrder] = (),
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[LoggedModel, LoggedModelPage]:
        """All logged models that match: ``async for model in ...``.

        At most *limit* of them; *max_results* is the size of a page.

        Operation: list_logged_models, POST .../mlflow/logged-models/search
        """
        return self._listing(
            endpoints.SEARCH_LOGGED_MODELS,
            LoggedModelPage,
            options,
            page_token=page_token,
            most=limit,
            experiment_ids=experiment_ids,
            filter=filter_string,
            order_by=order_by,
            max_results=max_results,
        )

"""The families for code without an event loop: each method waits for its asynchronous twin.

Each line is one method, with the parameters, result and docstring of the asynchronous one.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from adp_async.api import (
    deployments,
    experiments,
    logged_models,
    model_versions,
    registered_models,
    runs,
)
from adp_async.api._family import BlockingListing, Family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from adp_async.api._family import Listing, Page

T = TypeVar("T")
P = ParamSpec("P")
Item = TypeVar("Item")
FamilyType = TypeVar("FamilyType", bound=Family)
FamilyOut = TypeVar("FamilyOut", bound=Family, covariant=True)
PageType = TypeVar("PageType", bound="Page[object]")


class Waiting(Protocol):
    """Waits for the asynchronous session: a blocking session."""

    def call(self, doing: Awaitable[T], /) -> T: ...


class BlockingFamily(Generic[FamilyOut]):
    """The operations of one kind of thing; a blocking session has one of each family."""

    __slots__ = ("_family", "_session")

    def __init__(self, family: FamilyOut, session: Waiting) -> None:
        self._family = family
        self._session = session

    def __repr__(self) -> str:
        return f"<blocking {repr(self._family).strip('<>')}>"


def waits(
    method: Callable[Concatenate[FamilyType, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingFamily[FamilyType], P], T]:
    """*method* as a plain call, which returns when the reply has come."""

    @wraps(method)
    def waiting(self: BlockingFamily[FamilyType], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._session.call(method(self._family, *args, **kwargs))
        except Exception as error:
            # The way to the other thread would only clutter the traceback.
            raise error.with_traceback(_within(method, error.__traceback__))  # noqa: B904 - the same

    return waiting


def _within(method: object, traceback: TracebackType | None) -> TracebackType | None:
    """The part of *traceback* from the frame of *method* on; None if it is not in it."""
    code = getattr(method, "__code__", None)
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return traceback


def lists(
    method: Callable[Concatenate[FamilyType, P], Listing[Item, PageType]],
) -> Callable[Concatenate[BlockingFamily[FamilyType], P], BlockingListing[Item, PageType]]:
    """*method* as a listing for a plain ``for``."""

    @wraps(method)
    def listing(
        self: BlockingFamily[FamilyType], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingListing[Item, PageType]:
        found = method(self._family, *args, **kwargs)
        return BlockingListing(found, self._session.call)

    listing.__doc__ = (method.__doc__ or "").replace("async for", "for")
    return listing


class Runs(BlockingFamily[runs.Runs]):
    """The operations on runs, each one signed request that goes out at once."""

    __slots__ = ()

    create = waits(runs.Runs.create)
    get = waits(runs.Runs.get)
    update = waits(runs.Runs.update)
    delete = waits(runs.Runs.delete)
    restore = waits(runs.Runs.restore)
    search = lists(runs.Runs.search)
    log_batch = waits(runs.Runs.log_batch)
    log_metric = waits(runs.Runs.log_metric)
    log_param = waits(runs.Runs.log_param)
    log_model = waits(runs.Runs.log_model)
    log_inputs = waits(runs.Runs.log_inputs)
    set_tag = waits(runs.Runs.set_tag)
    delete_tag = waits(runs.Runs.delete_tag)
    update_tags = waits(runs.Runs.update_tags)
    metric_history = lists(runs.Runs.metric_history)
    list_artifacts = lists(runs.Runs.list_artifacts)


class Experiments(BlockingFamily[experiments.Experiments]):
    """The operations on experiments."""

    __slots__ = ()

    create = waits(experiments.Experiments.create)
    get = waits(experiments.Experiments.get)
    get_by_name = waits(experiments.Experiments.get_by_name)
    update = waits(experiments.Experiments.update)
    delete = waits(experiments.Experiments.delete)
    restore = waits(experiments.Experiments.restore)
    search = lists(experiments.Experiments.search)
    set_tag = waits(experiments.Experiments.set_tag)
    delete_tag = waits(experiments.Experiments.delete_tag)
    update_tags = waits(experiments.Experiments.update_tags)


class RegisteredModels(BlockingFamily[registered_models.RegisteredModels]):
    """The operations on registered models.  They belong to the platform, not to a workspace."""

    __slots__ = ()

    create = waits(registered_models.RegisteredModels.create)
    get = waits(registered_models.RegisteredModels.get)
    update = waits(registered_models.RegisteredModels.update)
    rename = waits(registered_models.RegisteredModels.rename)
    delete = waits(registered_models.RegisteredModels.delete)
    search = lists(registered_models.RegisteredModels.search)
    set_tag = waits(registered_models.RegisteredModels.set_tag)
    delete_tag = waits(registered_models.RegisteredModels.delete_tag)
    update_tags = waits(registered_models.RegisteredModels.update_tags)
    permissions = lists(registered_models.RegisteredModels.permissions)
    manage_permission = waits(registered_models.RegisteredModels.manage_permission)
    summary = waits(registered_models.RegisteredModels.summary)


class ModelVersions(BlockingFamily[model_versions.ModelVersions]):
    """The operations on versions of registered models."""

    __slots__ = ()

    create = waits(model_versions.ModelVersions.create)
    create_in_workspace = waits(model_versions.ModelVersions.create_in_workspace)
    get = waits(model_versions.ModelVersions.get)
    update = waits(model_versions.ModelVersions.update)
    delete = waits(model_versions.ModelVersions.delete)
    search = lists(model_versions.ModelVersions.search)
    transition_stage = waits(model_versions.ModelVersions.transition_stage)
    set_tag = waits(model_versions.ModelVersions.set_tag)
    delete_tag = waits(model_versions.ModelVersions.delete_tag)
    update_tags = waits(model_versions.ModelVersions.update_tags)


class LoggedModels(BlockingFamily[logged_models.LoggedModels]):
    """The operations on logged models."""

    __slots__ = ()

    search = lists(logged_models.LoggedModels.search)


class Deployments(BlockingFamily[deployments.Deployments]):
    """The operations on deployments.  They belong to the platform, not to a workspace."""

    __slots__ = ()

    create = waits(deployments.Deployments.create)
    get = waits(deployments.Deployments.get)
    update = waits(deployments.Deployments.update)
    delete = waits(deployments.Deployments.delete)
    search = lists(deployments.Deployments.search)
    activate = waits(deployments.Deployments.activate)
    deactivate = waits(deployments.Deployments.deactivate)
    roll_back = waits(deployments.Deployments.roll_back)
    roll_forward = waits(deployments.Deployments.roll_forward)
    update_tags = waits(deployments.Deployments.update_tags)
    contract = waits(deployments.Deployments.contract)
    get_activity = waits(deployments.Deployments.get_activity)
    search_activities = lists(deployments.Deployments.search_activities)
    search_logs = lists(deployments.Deployments.search_logs)
    get_log = waits(deployments.Deployments.get_log)
    search_inferences = lists(deployments.Deployments.search_inferences)
    get_inference = waits(deployments.Deployments.get_inference)
    inference_summary = waits(deployments.Deployments.inference_summary)
    export_inferences = waits(deployments.Deployments.export_inferences)

"""Registered models and their permissions."""

from typing import Literal

from attrs import field, frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._tag import Tag
from adp_async.entities.model_versions import ModelVersion

AssigneeType = Literal["USER", "ROLE", "GROUP"]
Permission = Literal["READ", "MANAGE", "ADMIN"]
PermissionOrder = Literal["timeCreated", "displayName"]
SortOrder = Literal["ASC", "DESC"]


@frozen
class RegisteredModelTag(Tag):
    """A tag of a registered model."""


@frozen
class RegisteredModelAlias(Entity):
    """A name, such as ``champion``, that points to one version."""

    alias: str = ""
    version: str = ""


@frozen
class DeploymentSummary(Entity):
    """How many deployments a model has."""

    total_deployment: int
    active_deployment: int


@frozen
class RegisteredModel(Entity):
    """A named model with its versions.  Times are Unix milliseconds.

    *latest_versions* holds the newest version of each stage.
    """

    name: str = ""
    creation_timestamp: int | None = None
    last_updated_timestamp: int | None = None
    description: str | None = None
    latest_versions: tuple[ModelVersion, ...] = ()
    aliases: tuple[RegisteredModelAlias, ...] = ()
    deployment_job_id: str | None = None
    deployment_job_state: str | None = None
    tags: tuple[RegisteredModelTag, ...] = ()
    deployment_summary: DeploymentSummary | None = None

    creation_datetime = Moment("creation_timestamp")
    last_updated_datetime = Moment("last_updated_timestamp")


@frozen
class RegisteredModelPage(Entity):
    """One page of a search for registered models."""

    registered_models: tuple[RegisteredModel, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[RegisteredModel, ...]:
        return self.registered_models


@frozen
class RegisteredModelSummary(Entity):
    """Counts of a schema of the catalog: models, versions, deployments."""

    registered_models_count: int
    model_versions_count: int
    model_deployments_count: int
    active_deployment_count: int


@frozen
class PermissionAssignees(Entity):
    """To whom a change of permissions applies: users, roles or groups, by name."""

    type: AssigneeType
    targets: tuple[str, ...] = field(converter=tuple[str, ...])


@frozen
class PermissionChange(Entity):
    """Permissions to assign to, or to revoke from, some assignees."""

    assignees: PermissionAssignees
    permissions: tuple[Permission, ...] = field(converter=tuple[Permission, ...])


@frozen
class RegisteredModelPermission(Entity):
    """One grantee's permissions on a model, direct or inherited from *resource_name*."""

    grantee: str
    grantee_type: str
    grantee_permissions: tuple[str, ...]
    grantee_name: str | None = None
    is_inherited: bool | None = None
    resource_name: str | None = None


@frozen
class PermissionPage(Entity):
    """One page of a model's permissions; the token comes from the reply's ``opc-next-page``."""

    items: tuple[RegisteredModelPermission, ...]
    next_page_token: str | None = None


@frozen
class RegisteredModelReply:
    """The envelope of a registered model; `adp_async.api` unwraps it."""

    registered_model: RegisteredModel

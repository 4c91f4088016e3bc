"""The typed operations of the MLOps API, one module a family.

A session has one of each: ``session.runs``, ``.experiments``, ``.registered_models``,
``.model_versions``, ``.logged_models``, ``.deployments``.  ``python -m adp_async.api`` prints
a table of methods and operations.

`ENDPOINTS` is the table of all operations, for ``session.call``.
"""

from adp_async._sansio.endpoints import ENDPOINTS

__all__ = ["ENDPOINTS"]

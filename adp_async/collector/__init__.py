"""One run from many processes: records are handed to the process that has the credentials.

``with run.shared() as handle`` opens a collector in this process; others attach to *handle*.  The
hop speaks the service's own API: a worker is an ordinary session whose requests lead to the
collector, which journals what it takes and sends full, signed requests.
"""

from adp_async._hop import Carrier
from adp_async.collector.collector import CollectorStats
from adp_async.collector.handle import Handle
from adp_async.collector.ledger import WorkerStats
from adp_async.collector.session import attached_session
from adp_async.collector.sharing import Shared

__all__ = ["Carrier", "CollectorStats", "Handle", "Shared", "WorkerStats", "attached_session"]

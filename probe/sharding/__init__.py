"""Several processes share the work of one request: shards of its units, each written apart, joined to one run."""

from probe.sharding.dispatching import Workers
from probe.sharding.working import Walk, Worker, at_work

__all__ = ["Walk", "Worker", "Workers", "at_work"]

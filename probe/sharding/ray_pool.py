"""Workers that Ray starts, on this machine or on those of a cluster. The only module that imports Ray, which only schedules:
what workers find goes to the run's folder, never through Ray."""

from __future__ import annotations

import logging
import os
from typing import Any

from probe.errors import EngineError
from probe.sharding.jobs import Job, ShardResult
from probe.sharding.pools import Heard
from probe.sharding.working import Worker

ADDRESS = "RAY_ADDRESS"
STORE_BYTES = 100 << 20  # of Ray's object store, through which only the job goes


class RayPool:
    """One actor a worker. Joins the cluster at `RAY_ADDRESS`, or one that this process has joined, or starts one here."""

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray as imported

        self._ray: Any = imported
        ray: Any = imported
        logging.getLogger("ray").setLevel(logging.ERROR)  # before it starts it tells of its own defaults
        self._own = not ray.is_initialized()
        if self._own:
            here = ADDRESS not in os.environ
            more = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if here else {}
            try:
                ray.init(
                    address="local" if here else os.environ[ADDRESS], log_to_driver=False, logging_level=logging.ERROR, **more
                )
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                if here:
                    raise EngineError(f"Ray does not start here: {_first_line(error)}", hint="--engine local") from error
                hint = "is it up, and is its token here (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)? --engine local needs neither"
                raise EngineError(
                    f"no Ray cluster answers at {os.environ[ADDRESS]}: {_first_line(error)}", hint=hint
                ) from error
        needs = {"num_cpus": job.threads, "num_gpus": 1 if job.accelerator else 0}
        self.room = self._room(needs)
        self._actor = ray.remote(**needs, max_restarts=0, max_task_retries=0)(Worker)
        self._job = ray.put(job)
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}  # what is being answered -> by which worker

    def _room(self, needs: dict[str, int]) -> int:
        """How many workers all machines have room for. Raises `EngineError` where no machine has room for one."""
        each = {"num_cpus": "CPU", "num_gpus": "GPU"}
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fits = [min(int(node.get(each[name], 0) // n) for name, n in needs.items() if n) for node in alive]
        if not sum(fits):
            what = " and ".join(f"{n} {each[name]}" for name, n in needs.items() if n)
            raise EngineError(f"no machine of the cluster has {what} for a worker", hint="OMP_NUM_THREADS=4 asks for 4 CPU")
        return sum(fits)

    def start(self, worker: int) -> None:
        self._actors[worker] = self._actor.remote(self._job)
        self._asked[self._actors[worker].begin.remote()] = worker

    def send(self, worker: int, shard: int) -> None:
        self._asked[self._actors[worker].work.remote(shard)] = worker

    def wait(self, seconds: float) -> list[Heard]:
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=seconds)
        return [Heard(self._asked.pop(one), *self._answer(one)) for one in ready]

    def _answer(self, asked: Any) -> tuple[ShardResult | None, str]:
        """What a worker answered; None where it is dead, and why."""
        try:
            return self._ray.get(asked), ""
        except self._ray.exceptions.RayError as error:
            return None, _first_line(error)

    def stop(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        self._ray.kill(actor)
        own = [asked for asked, one in self._asked.items() if one == worker]
        if own:
            self._ray.wait(own, num_returns=len(own), timeout=10)  # answered with the death
        for asked in own:
            del self._asked[asked]

    def close(self) -> None:
        for worker in list(self._actors):
            self.stop(worker)
        if self._own:
            self._ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

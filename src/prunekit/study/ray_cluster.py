"""Running of jobs as tasks of a Ray cluster, with the same results as in the processes of one machine."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunekit.errors import InputError
from prunekit.extras import imported
from prunekit.settings import number, whole
from prunekit.study.jobs import (
    MAX_ATTEMPTS,
    START,
    Executor,
    Failure,
    Job,
    JobQueue,
    WarningsTo,
    Watcher,
    line_of,
    log_here,
    perform_sent,
)

log = logging.getLogger(__name__)

EVERY = 0.5
"""Seconds between two looks at how far the tasks are, and the least between two reports of one task."""

AHEAD = 2
"""Tasks that are handed over for each that the cluster can run at present, so that it sees what is wanted
and can grow."""

Message = tuple[str, int, float | logging.LogRecord | Literal["begun"]]
"""Of a task: the name of its job, which attempt it is, and what it says."""


@dataclass(frozen=True)
class RayCluster(Executor):
    """A Ray cluster, of one machine or many; no scheduler of our own.

    A job whose worker or node comes to an end is begun again, elsewhere where Ray finds room, with twice the
    memory where it is memory that it ran out of (Ray itself would repeat the same request). Jobs keep what
    they have done in the folder of the study, and go on from there.

    Attributes:
        address: of the cluster; `auto` for the one that runs on this machine; None for one of this process,
            which ends with it, or the one that the process is connected with already.
        cpus: logical CPUs that a job takes; it computes on one thread, as everywhere.
        gpus: GPUs that a job takes, or the share of one.
        memory: bytes that Ray sets aside for a job; nothing if None.
        attempts: how often a job is begun whose worker or node comes to an end.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        number("cpus", self.cpus, 0.01, 1_024)
        number("gpus", self.gpus, 0, 64)
        if self.memory is not None:
            whole("memory", self.memory, 1, 1 << 50)
        whole("attempts", self.attempts, 1, MAX_ATTEMPTS)

    def slots(self, jobs: int) -> int:
        """How many of so many jobs the cluster has room for at present."""
        return max(min(self._room(_ray().cluster_resources()), jobs), 1)

    def run(self, jobs: Sequence[Job], watcher: Watcher, timeout: float | None) -> list[Failure]:
        """As `Executor.run`."""
        queue = JobQueue(jobs, watcher, self.attempts)
        with self.connected():
            tasks = _Tasks(_ray(), self, queue, watcher, timeout)
            try:
                tasks.run()
            finally:
                tasks.cancel()
        return queue.failures

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be connected with the cluster until the block ends, longer if the process was so before.

        Raises:
            InputError: if Ray is not installed, there is no cluster at the address, or none of its machines
                has what a job takes.
        """
        ray = _ray()
        if ray.is_initialized():
            self._check_room(ray)
            yield
            return
        where = {"address": self.address} if self.address is not None else {"include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_environment())
        except Exception as error:  # of many kinds, by what is at the address
            raise InputError(f"ray: no cluster at address {self.address!r}: {line_of(error)}") from None
        try:
            self._check_room(ray)
            yield
        finally:
            ray.shutdown()

    def _room(self, resources: dict[str, float]) -> int:
        """How many jobs fit into these resources."""
        takes = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory or 0)}
        return int(min(resources.get(name, 0.0) / wanted for name, wanted in takes.items() if wanted))

    def _check_room(self, ray: Any) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if nodes and not any(self._room(node) for node in nodes):
            most = {name: max(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU", "memory")}
            raise InputError(
                f"ray: a job takes cpus = {self.cpus:g}, gpus = {self.gpus:g}, memory = {self.memory or 0}, "
                f"but no machine of the cluster has more than {most['CPU']:g} CPUs, {most['GPU']:g} GPUs and "
                f"{most['memory']:.0f} bytes"
            )


def _ray() -> Any:
    return imported("ray", "The executor 'ray', on every machine of the cluster,")


def _environment() -> dict[str, Any]:
    """What a task's process needs of this one's: one thread from the start, and where modules are found."""
    names = ("PYTHONPATH", "PRUNEKIT_DATA")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {"env_vars": {"OMP_NUM_THREADS": "1", **kept}}


@dataclass
class _Task:
    """A job that has been handed to the cluster.

    Attributes:
        job: what it does.
        attempt: how often the job has been handed over before.
        handed: when, on the clock of `time.perf_counter`.
        due: when it is ended, on the same clock; None where there is no limit, or it has not begun.
        heard: whether it has reported.
    """

    job: Job
    attempt: int
    handed: float = field(default_factory=time.perf_counter)
    due: float | None = None
    heard: bool = False


class _Tasks:
    """The tasks that the cluster has been given, and what they say."""

    def __init__(
        self, ray: Any, cluster: RayCluster, queue: JobQueue, watcher: Watcher, timeout: float | None
    ) -> None:
        self._ray, self._cluster, self._queue, self._watcher = ray, cluster, queue, watcher
        self._timeout = timeout
        self._tasks: dict[Any, _Task] = {}
        self._begun: dict[str, int] = {}
        self._memory: dict[str, int] = {}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # beside this process, whose end it shares: what tasks say is not lost with another machine
        self._mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
        self._remote = ray.remote(max_retries=0)(perform_as_task)
        self._looked = 0.0

    def run(self) -> None:
        """Hand out jobs and hear of them until all have ended."""
        while True:
            self._hand_out()
            if not self._tasks:
                return
            done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=EVERY)
            if time.perf_counter() - self._looked > EVERY:
                self._hear()
            for reference in done:
                self._settle(reference, self._tasks.pop(reference))

    def cancel(self) -> None:
        """End all that is under way; stages write their files as a whole, so nothing is lost."""
        for reference in self._tasks:
            with suppress(Exception):
                self._ray.cancel(reference, force=True)
        with suppress(Exception):
            self._ray.kill(self._mailbox)

    def _hand_out(self) -> None:
        most = AHEAD * self._cluster.slots(1 << 20)
        while len(self._tasks) < most:
            job = self._queue.take()
            if job is None:
                return
            attempt = self._begun[job.name] = self._begun.get(job.name, -1) + 1
            try:
                content = pickle.dumps(job)
            except Exception as error:
                self._queue.settle(job, 0.0, Failure.of(job, error))
                continue
            memory = self._memory.get(job.name, self._cluster.memory)
            takes: dict[str, Any] = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus}
            if memory is not None:
                takes["memory"] = memory
            task = self._remote.options(**takes, scheduling_strategy="SPREAD", name=job.name[:200])
            reference = task.remote(content, job.name, attempt, self._mailbox)
            self._tasks[reference] = _Task(job, attempt)

    def _hear(self) -> None:
        """What tasks have said since the last look; those are ended that take too long."""
        self._looked = time.perf_counter()
        by_name = {task.job.name: task for task in self._tasks.values()}
        with suppress(self._ray.exceptions.RayError):  # the next look hears it
            for name, attempt, said in self._ray.get(self._mailbox.take.remote(), timeout=10 * EVERY):
                if isinstance(said, logging.LogRecord):
                    log_here(said)
                elif name in by_name and by_name[name].attempt == attempt:
                    self._note(by_name[name], said)
        for reference, task in list(self._tasks.items()):
            if task.due is not None and self._looked > task.due:
                self._ray.cancel(reference, force=True)
                del self._tasks[reference]
                why = f"took longer than {self._timeout:g} s, the limit of a cell"
                self._queue.settle(task.job, self._looked - task.handed, Failure(task.job.name, why))

    def _note(self, task: _Task, said: float | Literal["begun"]) -> None:
        if said == "begun":
            if self._timeout is not None:
                task.due = self._looked + self._timeout + START
            return
        if not task.heard and self._timeout is not None:
            task.due = self._looked + self._timeout
        task.heard = True
        self._watcher.progressed(task.job, said)

    def _settle(self, reference: Any, task: _Task) -> None:
        failure = self._outcome(reference, task.job)
        self._queue.settle(task.job, time.perf_counter() - task.handed, failure)

    def _outcome(self, reference: Any, job: Job) -> Failure | None:
        errors = self._ray.exceptions
        try:
            failure: Failure | None = self._ray.get(reference)
        except errors.OutOfMemoryError as error:
            return self._out_of_memory(job, error)
        except errors.RayTaskError as error:  # the job's own errors are no exceptions any more
            return Failure(job.name, f"its task cannot run: {line_of(error.cause)}")
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            return Failure(job.name, f"its task cannot be started: {line_of(error)}")
        except errors.OutOfDiskError as error:
            return Failure(job.name, line_of(error), disk_full=True)
        except errors.WorkerCrashedError:
            return Failure(job.name, "its process came to an end", lost=True)
        except errors.RayError as error:
            return Failure(job.name, f"its machine came to an end: {line_of(error)}", lost=True)
        return None if failure is None else replace(failure, name=job.name)

    def _out_of_memory(self, job: Job, error: Exception) -> Failure:
        """One that is begun again with twice the memory, as long as a machine has that."""
        had = self._memory.get(job.name, self._cluster.memory)
        nodes = [node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]]
        most = int(max(nodes, default=0))
        wanted = most // 2 if had is None else min(2 * had, most)
        why = "ran out of memory" + ("" if had is None else f" with {had:,} bytes set aside")
        if had is not None and wanted <= had:
            return Failure(job.name, f"{why}, and no machine has more")
        self._memory[job.name] = wanted
        return Failure(job.name, f"{why}; {wanted:,} bytes are asked for next", lost=True)


class Mailbox:
    """What tasks have said and nobody has taken yet; of how far one is only the newest is kept."""

    def __init__(self) -> None:
        self._fractions: dict[tuple[str, int], float] = {}
        self._others: list[Message] = []

    def put(self, message: Message) -> None:
        """Add a message."""
        name, attempt, said = message
        if isinstance(said, float):
            self._fractions[name, attempt] = said
        else:
            self._others.append(message)

    def take(self) -> list[Message]:
        """All messages, which are then gone."""
        fractions: list[Message] = [(*key, said) for key, said in self._fractions.items()]
        taken = self._others + fractions
        self._others, self._fractions = [], {}
        return taken


# ---- in a worker of the cluster ----------------------------------------------------------------------------


def perform_as_task(content: bytes, name: str, attempt: int, mailbox: Any) -> Failure | None:
    """Run one job; what it raises becomes its failure."""
    import torch

    torch.set_num_threads(1)

    def tell(said: Any) -> None:
        mailbox.put.remote((name, attempt, said))

    tell("begun")
    channel = WarningsTo(tell)
    logging.getLogger("prunekit").addHandler(channel)
    try:
        return perform_sent(content, name, _Seldom(tell))
    finally:
        logging.getLogger("prunekit").removeHandler(channel)


class _Seldom:
    """Progress that is told at once at first, and then every so often."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell, self._told = tell, float("-inf")

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            self._tell(float(fraction))

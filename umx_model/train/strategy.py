"""Which devices and machines train together, and what their processes agree on.

Within one process, TensorFlow keeps the devices in step. Several processes (workers) each run the
whole program on their share of the excerpts; only the chief writes, and whatever depends on a clock,
a signal or a file is decided by `Workers` for all. A worker that dies is noticed by TensorFlow's
coordination service: it misses heartbeats for ten seconds, which threads of the runtime send however
long Python is busy with something else, and what the others wait for then fails.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from umx_model.errors import InputError

_TF_CONFIG = "TF_CONFIG"
_ROLES = ("chief", "worker")
_EXAMPLE = (
    'expected {"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}, '
    "with another index on each machine"
)

# Far above the groups that the strategy numbers upwards from 1.
_GROUP = 1_000_000
_SAME_BITS = 48  # of a hash, exact in float64


def choose_strategy() -> tf.distribute.Strategy:
    """Choose how to train from the machine and the environment; must come before any other TensorFlow operation.

    Returns:
        The strategy whose scope is entered; else `MultiWorkerMirroredStrategy` where TF_CONFIG lists
        several workers; else `MirroredStrategy` where the machine has several GPUs; else the default.

    Raises:
        InputError: TF_CONFIG is malformed, or this process is neither chief nor worker in it.
    """
    workers = _cluster(os.environ.get(_TF_CONFIG, ""))
    if tf.distribute.has_strategy():
        entered = tf.distribute.get_strategy()
        if Workers(entered).count > 1:
            raise RuntimeError("leave the scope before training: it makes the strategy of several workers itself")
        return entered
    if workers > 1:
        return _multi_worker_strategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


@functools.cache  # a process can join a cluster once
def _multi_worker_strategy() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the only one, the chief, or worker 0 where there is no chief."""
    return Workers(strategy).chief


def _cluster(text: str) -> int:
    """Check TF_CONFIG, of TensorFlow's own form or Vertex AI's, and return how many workers it lists."""
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{_TF_CONFIG}: not JSON ({error}); {_EXAMPLE}") from None
    cluster = config.get("cluster") or {} if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not all(
        isinstance(tasks, list) and all(isinstance(task, str) and ":" in task for task in tasks)
        for tasks in cluster.values()
    ):
        raise InputError(f"{_TF_CONFIG}: malformed; {_EXAMPLE}")
    if not cluster:
        return 1
    for role in cluster:
        if role not in _ROLES:
            raise InputError(f"{_TF_CONFIG}: the cluster has tasks of type {role!r}; only chief and worker train")
    task = config.get("task")
    kind, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if kind not in _ROLES:
        raise InputError(f"{_TF_CONFIG}: task.type is {kind!r}; only chief and worker train")
    count = len(cluster.get(kind, []))
    if not str(index).isdigit() or int(str(index)) >= count:
        raise InputError(f"{_TF_CONFIG}: task.index is {index!r}; the cluster has {count} tasks of type {kind}")
    if len(cluster.get("chief", [])) > 1:
        raise InputError(f"{_TF_CONFIG}: the cluster has {len(cluster['chief'])} chiefs; expected at most one")
    addresses = [address for tasks in cluster.values() for address in tasks]
    if len(set(addresses)) < len(addresses):
        raise InputError(f"{_TF_CONFIG}: the cluster lists an address twice; {_EXAMPLE}")
    return len(addresses)


class WorkerLostError(RuntimeError):
    """Another worker has died; this one cannot go on without it."""


class Workers:
    """The processes of one training.

    Methods wait until all workers call them, with values of the same shape. A worker that trains alone gets
    its own values back at once.

    Args:
        strategy: of this process.

    Attributes:
        count: how many there are.
        chief: whether this process is the one that writes and decides.
        name: of this one.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        resolver = strategy.cluster_resolver
        cluster = resolver.cluster_spec().as_dict() if resolver else {}
        self._addresses = {(kind, index): address for kind in cluster for index, address in enumerate(cluster[kind])}
        self.count = max(1, len(self._addresses))
        self.chief, self.name = True, "the only worker"
        if self.count > 1:
            task = resolver.task_type, resolver.task_id
            self.chief = task == (("chief", 0) if "chief" in cluster else ("worker", 0))
            self.name = self._describe(*task)
            self._task = task
            self._keys = itertools.count(1)
            # Compiled, as it is called at every step. All workers trace and call in one order, so that the keys agree.
            self._maximum = tf.function(lambda values: self._combine(values, "Max"), autograph=False)

    def maximum(self, *values: float) -> list[float]:
        """Return the largest of all workers' values, one by one: whether any has a flag set, the latest time."""
        if self.count == 1:
            return list(values)
        return self._maximum(tf.constant(values, tf.float64)).numpy().tolist()

    def share(self, values: np.ndarray) -> np.ndarray:
        """Return the chief's values; all workers give values of the same shape and type."""
        if self.count == 1:
            return values
        # Collectives carry few types; of integers, this one holds all.
        carried = np.dtype(np.int64) if np.issubdtype(values.dtype, np.integer) else values.dtype
        own = values if self.chief else np.zeros_like(values)
        return self._combine(tf.constant(own.astype(carried)), "Add").numpy().astype(values.dtype)

    def share_text(self, text: str) -> str:
        """Return the chief's text."""
        content = np.frombuffer(text.encode(), np.uint8)
        length = int(self.share(np.array(len(content))))
        return self.share(content if self.chief else np.zeros(length, np.uint8)).tobytes().decode()

    def share_variables(self, variables: Sequence[Any]) -> None:
        """Give Keras variables the values that they have on the chief."""
        if self.count > 1:
            for variable in variables:
                variable.assign(self.share(np.asarray(variable.numpy())))

    def expect_same(self, what: str, content: str) -> None:
        """Make sure that all workers have the same of something.

        Raises:
            InputError: on every worker, if one has something else than the chief.
        """
        own = int.from_bytes(hashlib.sha256(content.encode()).digest()[: _SAME_BITS // 8], "big")
        differs = own != int(self.share(np.array(own)))
        if self.maximum(differs)[0]:
            where = f" ({self.name} has another than the chief)" if differs else ""
            raise InputError(f"{what}: not the same on all workers{where}; start all with the same profile and data")

    @contextlib.contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Raise WorkerLostError where TensorFlow fails in here because a worker has died."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.count == 1 or not re.search(r"Collective ops is aborted|remote target /job:", error.message):
                raise
            tasks = re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message)
            others = [(kind, int(index)) for kind, index in tasks if (kind, int(index)) != self._task]
            who = self._describe(*others[0]) if others else "another worker"
            raise WorkerLostError(
                f"{who} has ended, and {self.name} cannot go on alone; start all workers again with --resume"
            ) from None

    def _combine(self, values: tf.Tensor, operation: str) -> tf.Tensor:
        kind, index = self._task
        with tf.device(f"/job:{kind}/task:{index}/device:CPU:0"):
            return tf.raw_ops.CollectiveReduceV2(
                input=values,
                group_size=self.count,
                group_key=_GROUP,
                instance_key=next(self._keys),
                ordering_token=[],
                merge_op=operation,
                final_op="Id",
                communication_hint="ring",
            )

    def _describe(self, kind: str, index: int) -> str:
        return f"{kind} {index} ({self._addresses[kind, index]})"

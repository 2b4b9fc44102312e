"""A copy of a training elsewhere, kept up to date in the background, and going on from it.

    with Backup("model", "gs://bucket/model", profile) as backup:
        ...
        backup.request()  # after each checkpoint; returns at once

The copy looks as the model folder does. At any moment training can go on from it: the files of a
checkpoint are there before its index, by which it is found, and are removed after it.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType

import tensorflow as tf

from umx_model import profile as profiles
from umx_model.data.remote import is_remote
from umx_model.errors import InputError
from umx_model.model.checkpoint_files import list_checkpoints
from umx_model.model.folder import CHECKPOINTS, SAVED_MODEL
from umx_model.profile import Profile
from umx_model.progress import ProgressBar
from umx_model.train.copying import STATE, copy_file, list_files, newest_step, probe, remove_file
from umx_model.train.summaries import FOLDER as LOGS

_log = logging.getLogger(__name__)

_SNAPSHOTS = ".backup"  # in the model folder, so that files can be linked instead of copied
_CHANGING = (f"{CHECKPOINTS}/", f"{LOGS}/", f"{SAVED_MODEL}/")  # where files are removed, here and so there

_ANSWER_SECONDS = 30.0  # in which a destination must answer, or training starts without
_NEEDED_SECONDS = 120.0  # the same where there is nothing else to resume
_REST_SECONDS = 60.0  # between copies, as sending takes some of the processor
_RETRY_SECONDS = 120.0  # after which to give up until the next request
_SLOW_SECONDS = 300.0  # of one copy, after which to say so: TensorFlow's gs:// itself tries ten minutes
_END_SECONDS = 600.0  # to wait at the end of training
_STOP_SECONDS = 10.0  # to wait when training was stopped

# What trying again does not mend.
_REFUSALS = (
    tf.errors.NotFoundError,  # no such bucket
    tf.errors.PermissionDeniedError,
    tf.errors.UnauthenticatedError,
    tf.errors.InvalidArgumentError,
    tf.errors.FailedPreconditionError,  # a file where a folder should be
    tf.errors.UnimplementedError,  # no such kind of file system
)


class Backup:
    """Copies a model folder to a destination in the background while training goes on.

    The destination may be slow, away or full: copying is tried again, then given up with one warning until
    the next request. A thread does it that does not keep the process from ending.

    As a context manager: a training that ends waits for the last copy for at most ten minutes, one
    that was stopped or failed for at most ten seconds; Ctrl-C ends the wait.

    Args:
        output: the model folder, local.
        destination: a folder of its own, on anything that `tf.io.gfile` writes to.
        profile: of the training, with the data's fingerprint. The profile in `output` counts instead
            where that holds checkpoints, so that a training may go on with changed data.
        resume: whether this continues a training.

    Raises:
        InputError: the output is not local.
    """

    def __init__(self, output: str, destination: str, profile: Profile, resume: bool = False) -> None:
        if is_remote(output):
            raise InputError(f"{output}: a backup is of a local output folder; this one needs none")
        self._output = output
        self._destination = destination.rstrip("/")
        self._resume = resume
        self._step = newest_step(output)  # None where there is no checkpoint
        self._profile = profile if self._step is None else _read_profile(output) or profile
        self._checked = False
        self._copied: dict[str, tuple[int, int]] | None = None  # size and time of files as they are there
        self._condition = threading.Condition()
        self._pending: str | None = None  # the snapshot to copy next
        self._began: float | None = None  # when the copy underway was started
        self._ends = False
        self._warned = False
        self._snapshots = 0
        self._thread = threading.Thread(target=self._work, name="backup", daemon=True)

    def prepare(self, quiet: bool = False) -> None:
        """Make sure that the destination may be used, and bring back a training that is ahead of the local one.

        Where it does not answer in time, training starts all the same, unless there is nothing else to resume.

        Raises:
            InputError: it cannot be written, or holds another training, or one that this does not resume; or
                there is no answer and no local checkpoint.
        """
        needed = self._resume and self._step is None
        limit = _NEEDED_SECONDS if needed else _ANSWER_SECONDS
        reason = f"no answer in {limit:g} seconds"
        try:
            self._checked = _within(limit, self._check)
        except tf.errors.OpError as error:
            reason = _reason(error)
        if needed and not self._checked:
            raise InputError(
                f"{self._destination}: the backup cannot be read ({reason}), and {self._output} holds no checkpoints "
                "to resume; try again, or leave out --backup to start anew"
            )
        if not self._checked:
            _log.warning("backup: %s cannot be reached (%s); training goes on", self._destination, reason)
        elif self._resume:
            restore_backup(self._destination, self._output, quiet)

    def __enter__(self) -> Backup:
        shutil.rmtree(os.path.join(self._output, _SNAPSHOTS), ignore_errors=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(_END_SECONDS if kind is None else _STOP_SECONDS)
        finally:
            shutil.rmtree(os.path.join(self._output, _SNAPSHOTS), ignore_errors=True)

    def request(self) -> None:
        """Have the folder copied as it is now. A copy that was not begun yet is left out in favour of this one."""
        try:
            snapshot = self._take_snapshot()
        except OSError as error:
            self._warn(f"files cannot be held ({_reason(error)})")
            return
        with self._condition:
            skipped, self._pending = self._pending, snapshot
            minutes = 0.0 if self._began is None else (time.monotonic() - self._began) / 60
            self._condition.notify_all()
        if skipped:
            shutil.rmtree(skipped, ignore_errors=True)
        if minutes * 60 > _SLOW_SECONDS:
            self._warn(f"a copy has been underway for {minutes:.0f} minutes")

    def hurry(self) -> None:
        """Have the folder copied as it is now, and wait for it as a training that was stopped does."""
        self.request()
        self._wait(_STOP_SECONDS)

    def _take_snapshot(self) -> str:
        """Hold on to all files as they are, without copying them."""
        self._snapshots += 1
        snapshot = os.path.join(self._output, _SNAPSHOTS, str(self._snapshots))
        for name in list_files(self._output):
            source, link = os.path.join(self._output, name), os.path.join(snapshot, name)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            try:
                os.link(source, link)
            except FileNotFoundError:
                continue
            except OSError:  # a file system without links
                shutil.copy2(source, link)
        return snapshot

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pending or self._ends)
                snapshot, self._pending = self._pending, None
                if snapshot is None:
                    return
                self._began = time.monotonic()
            goes_on = self._try_to_copy(snapshot)
            shutil.rmtree(snapshot, ignore_errors=True)
            with self._condition:
                self._began = None
                self._condition.notify_all()
                if not goes_on:
                    return
                self._condition.wait_for(lambda: self._ends, _REST_SECONDS)

    def _try_to_copy(self, snapshot: str) -> bool:
        """Copy a snapshot, if need be in several attempts; return whether to go on with later ones."""
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                if not self._checked:
                    self._check_late()
                self._copy(snapshot)
                break
            except InputError as error:
                self._warn(f"given up: {error}")
                return False
            except Exception as error:  # whatever it is, training goes on
                if time.monotonic() + pause - began > _RETRY_SECONDS:
                    self._warn(_reason(error))
                    return True
            time.sleep(pause)
            pause = min(2 * pause, 8.0)
        if self._warned:
            _log.warning("backup: %s is up to date again", self._destination)
        self._warned = False
        return True

    def _check_late(self) -> None:
        """Check what could not be checked before training started."""
        self._check()
        if (newest_step(self._destination) or 0) > (self._step or 0):
            raise InputError(
                f"{self._destination}: holds a later step than the one that was resumed when it did not answer; "
                "stop and resume to go on from there, or choose another folder for --backup"
            )
        self._checked = True

    def _check(self) -> None:
        """Raise InputError where the destination cannot be used, or holds what must not be overwritten."""
        there = self._destination
        try:
            theirs = _read_profile(there)
            if theirs is None:
                probe(there)
        except _REFUSALS as error:
            raise InputError(f"{there}: a backup cannot be written there ({_reason(error)})") from None
        if theirs is not None:
            # With nothing here yet, the data may be the same downloaded anew; the trainer tells if it is not as it was.
            differing = _differences(theirs, self._profile, compare_data=self._step is not None)
            if differing:
                raise InputError(
                    f"{there}: holds the backup of another training: {'; '.join(differing)}; choose another folder for "
                    f"--backup. (To go on from it nevertheless, copy it to {self._output} yourself, and resume)"
                )
            if not self._resume:
                raise InputError(
                    f"{there}: holds the backup of a training; resume it (--resume), or choose another folder for "
                    "--backup"
                )

    def _copy(self, snapshot: str) -> None:
        """Bring the destination up to date."""
        files = {name: os.stat(os.path.join(snapshot, name)) for name in list_files(snapshot)}
        if self._copied is None:
            self._copied = self._find_copied(files)
        order = list(files)
        if profiles.FILE_NAME in files and profiles.FILE_NAME not in self._copied:
            order.insert(0, profiles.FILE_NAME)  # says whose folder this is
        for name in order:
            now = files[name].st_size, files[name].st_mtime_ns
            if self._copied.get(name) != now:
                self._copied[name] = (-1, -1)
                copy_file(os.path.join(snapshot, name), os.path.join(self._destination, name), now[0])
                self._copied[name] = now
        for name in sorted(self._copied.keys() - files.keys()):
            if name.startswith(_CHANGING):
                remove_file(os.path.join(self._destination, name))
            del self._copied[name]

    def _find_copied(self, files: dict[str, os.stat_result]) -> dict[str, tuple[int, int]]:
        """Find out what an earlier process copied: what is as long there as here, and not older."""
        found = {}
        for name in list_files(self._destination):
            there, here = tf.io.gfile.stat(os.path.join(self._destination, name)), files.get(name)
            # Times of files, as TensorFlow gives them, are whole seconds.
            same = here and there.length == here.st_size and there.mtime_nsec // 10**9 >= here.st_mtime_ns // 10**9
            rewritten = os.path.basename(name) in (STATE, profiles.FILE_NAME)
            found[name] = (here.st_size, here.st_mtime_ns) if here and same and not rewritten else (-1, -1)
        return found

    def _wait(self, limit: float) -> None:
        """Wait until everything is copied, at most so many seconds."""

        def done() -> bool:
            return not self._thread.is_alive() or (self._pending is None and self._began is None)

        with self._condition:
            self._ends = True
            self._condition.notify_all()
            try:
                if self._condition.wait_for(done, min(1.0, limit)):
                    return
                span = f"{limit / 60:g} minutes" if limit >= 60 else f"{limit:g} seconds"
                _log.warning("backup: waiting up to %s for the last copy; Ctrl-C ends the wait", span)
                if self._condition.wait_for(done, limit - 1):
                    return
            except KeyboardInterrupt:
                pass
        _log.warning(
            "backup: %s lacks what came last; it can be restored from, and %s is whole", self._destination, self._output
        )

    def _warn(self, what: str) -> None:
        if not self._warned:
            _log.warning("backup: %s: %s; training goes on", self._destination, what)
        self._warned = True


def restore_backup(destination: str, output: str, quiet: bool = False) -> bool:
    """Bring a training back from its backup, unless the local one has come as far.

    Args:
        destination: where the backup is.
        output: the model folder; created where there is none. Checkpoints that the backup lacks are removed.
        quiet: show no progress bar.

    Returns:
        Whether there was a backup with a newer checkpoint than the newest in `output`.

    Raises:
        InputError: the backup cannot be read.
    """
    destination = destination.rstrip("/")
    try:
        theirs, ours = newest_step(destination), newest_step(output)
        if theirs is None:
            return False
        if ours is not None and ours >= theirs:
            _log.info("backup: %s is at step %d, %s at %d: resuming the former", output, ours, destination, theirs)
            return False
        # What says whose folder this is first, what says that all is there last: a restore may be interrupted.
        last = f"{list_checkpoints(os.path.join(destination, CHECKPOINTS))[0]}.index"
        names = list_files(destination)
        names.sort(key=lambda name: (name != profiles.FILE_NAME, os.path.join(destination, name) == last))
        sizes = {name: tf.io.gfile.stat(os.path.join(destination, name)) for name in names}
        total = sum(stat.length for stat in sizes.values()) / 1e6
        with ProgressBar("restoring the backup", total, "MB", quiet) as bar:
            for name in names:
                local = os.path.join(output, name)
                copy_file(os.path.join(destination, name), local, sizes[name].length)
                os.utime(local, ns=(sizes[name].mtime_nsec, sizes[name].mtime_nsec))  # so it is not copied back
                bar.advance(sizes[name].length / 1e6)
    except (tf.errors.OpError, OSError) as error:
        raise InputError(f"{destination}: the backup cannot be restored ({_reason(error)}); try again") from None
    for name in set(list_files(output)) - set(names):
        if name.startswith(f"{CHECKPOINTS}/"):
            os.remove(os.path.join(output, name))
    before = f"{output} was at step {ours}" if ours is not None else f"{output} had no checkpoints"
    _log.warning("backup: restored step %d from %s; %s", theirs, destination, before)
    return True


def _read_profile(folder: str) -> Profile | None:
    path = os.path.join(folder, profiles.FILE_NAME)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return Profile.parse(file.read(), source=path)
    except tf.errors.NotFoundError:
        return None


def _differences(theirs: Profile, ours: Profile, compare_data: bool) -> list[str]:
    """Say what tells two trainings apart."""
    there, here = theirs.model.model_dump(mode="json"), ours.model.model_dump(mode="json")
    differing = [f"model.{key} is {there[key]} there and {here[key]} here" for key in here if there[key] != here[key]]
    known = theirs.data_fingerprint and ours.data_fingerprint
    if compare_data and known and theirs.data_fingerprint != ours.data_fingerprint:
        differing.append("its database was another one, or has changed")
    return differing


def _within(seconds: float, function: Callable[[], None]) -> bool:
    """Run a function, and return whether it ended in time; raise what it raised by then."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return (str(text).split(" with body ")[0].strip().splitlines() or [type(error).__name__])[0]

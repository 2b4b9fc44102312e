"""Training: a database of samples in, a model folder out.

    profile = train(Profile.read("profile.json"), data="database", output="model")

The loop draws excerpts, steps, validates after every epoch, and leaves behind at any time what is
needed to go on: `train(..., resume=True)` continues where a run ended, as if it had not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from umx_model.data.track_folder import Sample, database_fingerprint, read_database
from umx_model.errors import InputError
from umx_model.profile import Profile
from umx_model.train.backup import Backup
from umx_model.train.checkpoints import prepare_output
from umx_model.train.checks import check_trainable
from umx_model.train.disk import explaining_full_disk
from umx_model.train.interrupt import Interrupt
from umx_model.train.loop import Loop
from umx_model.train.run import Run
from umx_model.train.strategy import Workers, choose_strategy


def train(
    profile: Profile,
    data: str | os.PathLike[str] | Mapping[str, Sequence[Sample]],
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    quiet: bool = False,
    data_fingerprint: str | None = None,
    backup: str | os.PathLike[str] | None = None,
    start_from: str | os.PathLike[str] | None = None,
) -> Profile:
    """Train a model.

    The recipe is Open-Unmix's (`scripts/train.py`, v1.3.0) as far as the profile does not say
    otherwise. Work is shared out over all GPUs of the machine, over the workers that TF_CONFIG lists, or
    runs under the `tf.distribute` strategy whose scope is entered. Every worker calls this function, with
    the same arguments; the chief alone writes, and `output` need not be seen by the others. Python's,
    NumPy's and TensorFlow's global random seeds are set.

    Args:
        profile: of the model and its training.
        data: a database, or its samples under `train` and `valid`.
        output: the model folder to write: `profile.json`, `model.weights.h5` (the best by
            validation loss) and `saved_model/` at the end, `checkpoints/` and `logs/` (for
            TensorBoard) underway.
        resume: continue from the newest checkpoint in `output`, or start where there is none. The
            model must be the checkpoint's, settings of the training may differ. The learning rate
            (unless `train.learning_rate` was changed) and the time spent (`max_minutes`) continue
            too. Where the database has changed, losses from before do not count any more.
        quiet: show no progress bar.
        data_fingerprint: of the database, to be recorded; computed where `data` is a folder.
        backup: a folder of its own, such as `gs://bucket/folder`, to which the model folder is copied in
            the background; see `umx_model.train.backup`. With `resume`, training goes on from there where
            it is ahead of `output`.
        start_from: a model folder or a checkpoint, whose weights and input statistics training starts from, instead
            of random weights and measured statistics; the optimizer starts anew, and the best epoch is chosen among
            the new ones. Its targets, architecture and sizes must be the profile's. A training that is resumed goes on
            from its own checkpoint.

    Returns:
        The profile as written: with history, package versions and data fingerprint.

    Raises:
        InputError: data, profile, output folder, checkpoint or model to start from cannot be used.
        TrainingFailedError: the loss is no longer a number.
        WorkerLostError: another worker has died.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
        Terminated: after SIGTERM, likewise; a SystemExit with code 143.
    """
    strategy = choose_strategy()  # must come before any other TensorFlow operation
    workers = Workers(strategy)
    if resume and workers.count > 1:  # the others may not see the folder that holds it
        with workers.noticing_loss():
            profile = Profile.parse(workers.share_text(profile.model_dump_json()))
    if isinstance(data, Mapping):
        samples = data
    else:
        samples = read_database(os.fspath(data), profile.mixture_targets, splits=("train", "valid"))
        data_fingerprint = data_fingerprint or database_fingerprint(os.fspath(data))
    check_trainable(profile, samples, strategy.num_replicas_in_sync)
    folder = os.fspath(output)
    with workers.noticing_loss():
        lengths = {split: [(sample.id, sample.length) for sample in samples[split]] for split in ("train", "valid")}
        workers.expect_same("profile and database", f"{profile.model_dump_json()} {lengths}")
        start = None if start_from is None else os.fspath(start_from)
        run = Run(profile, samples, folder, strategy, workers, data_fingerprint, quiet, start)
        if workers.chief:
            prepare_output(folder, resume)  # not before the model is built, which may refuse the profile
        if backup is not None and workers.chief:
            run.backup = Backup(folder, os.fspath(backup), run.profile, resume)
            run.backup.prepare(quiet)
        backing_up = run.backup or contextlib.nullcontext()
        with Interrupt() as interrupt, backing_up, explaining_full_disk(folder, run.checkpoint_bytes):
            run.start(resume)
            loop = Loop(run, interrupt)
            with interrupt.deferred(loop.rescue):
                try:
                    loop.train()
                except InputError as error:
                    raise InputError(f"{error}; resuming (--resume) then continues from the last checkpoint") from None
            return run.finish()

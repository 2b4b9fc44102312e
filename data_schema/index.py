"""The index of a database: one tf.Example per sample, as `schema.pbtxt` describes it.

    id, split, rate, channels, length                  one value each
    targets                                            names, in the profile's order
    uri, format, loudness, peak, silence,
    bandwidth, cutoff, clipping, dc_offset, non_finite one value per target, aligned with `targets`

The audio stays where it is; the index says where.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from umx_model.data.audio import AudioInfo
from umx_model.data.measure import TargetStatistics
from umx_model.data.track_folder import Sample

SCHEMA_FILE = str(Path(__file__).with_name("schema.pbtxt"))


def to_example(sample: Sample, statistics: Mapping[str, TargetStatistics], targets: Sequence[str]) -> tf.train.Example:
    """Describe a sample.

    Args:
        sample: where its files are and what their headers say.
        statistics: of each target's waveform.
        targets: the order in which targets are listed.
    """
    files = [sample.files[target] for target in targets]
    measured = [statistics[target] for target in targets]
    features = {
        "id": _text([sample.id]),
        "split": _text([sample.split]),
        "rate": _integers([sample.sample_rate]),
        "channels": _integers([sample.channels]),
        "length": _integers([sample.length]),
        "targets": _text(targets),
        "uri": _text([file.path for file in files]),
        "format": _text([file.format for file in files]),
        "loudness": _numbers([one.loudness_db for one in measured]),
        "peak": _numbers([one.peak for one in measured]),
        "silence": _numbers([one.silence_fraction for one in measured]),
        "bandwidth": _numbers([one.bandwidth_hz for one in measured]),
        "cutoff": _numbers([one.cutoff_hz for one in measured]),
        "clipping": _numbers([one.clipping for one in measured]),
        "dc_offset": _numbers([one.dc_offset for one in measured]),
        "non_finite": _integers([one.non_finite for one in measured]),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def from_example(record: bytes) -> Sample:
    """Read back the sample that a serialised example describes."""
    feature = tf.train.Example.FromString(record).features.feature

    def text(name: str) -> list[str]:
        return [value.decode() for value in feature[name].bytes_list.value]

    def integer(name: str) -> int:
        return int(feature[name].int64_list.value[0])

    rate, channels, length = integer("rate"), integer("channels"), integer("length")
    files = {
        target: AudioInfo(path=uri, format=format_, sample_rate=rate, channels=channels, samples=length)
        for target, uri, format_ in zip(text("targets"), text("uri"), text("format"), strict=True)
    }
    return Sample(
        id=text("id")[0], split=text("split")[0], sample_rate=rate, channels=channels, length=length, files=files
    )


def read_index(folder: str) -> tuple[Sample, ...]:
    """Read the samples of one split.

    Args:
        folder: the split's folder of an Examples artifact: gzipped TFRecord files, local or remote.

    Returns:
        Its samples, sorted by id.

    Raises:
        FileNotFoundError: there are no such files.
    """
    files = sorted(tf.io.gfile.glob(tf.io.gfile.join(folder, "*.gz")))
    if not files:
        raise FileNotFoundError(f"{folder}: holds no index of samples (*.gz)")
    records = tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator()
    return tuple(sorted((from_example(record) for record in records), key=lambda sample: sample.id))


def _text(values: Sequence[str]) -> Any:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))


def _integers(values: Sequence[int]) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _numbers(values: Sequence[float]) -> Any:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))

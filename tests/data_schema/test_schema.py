"""The schema, as TensorFlow Data Validation applies it to index examples."""

from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics import stats_impl
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from data_schema.index import SCHEMA_FILE, from_example, read_index, to_example
from umx_model.data.audio import AudioInfo
from umx_model.data.measure import TargetStatistics
from umx_model.data.track_folder import Sample

TARGETS = ("vocals", "bass", "Ünüsual-target")


def example() -> tf.train.Example:
    files = {target: AudioInfo(f"/data/{target}.wav", "WAV/PCM_16", 44100, 2, 1000) for target in TARGETS}
    statistics = TargetStatistics(
        peak=0.5,
        loudness_db=-20.0,
        silence_fraction=0.1,
        bandwidth_hz=8e3,
        cutoff_hz=0.0,
        clipping=0.0,
        dc_offset=0.0,
        non_finite=0,
        content="00ff",
    )
    sample = Sample("song", "train", 44100, 2, 1000, files)
    return to_example(sample, dict.fromkeys(TARGETS, statistics), TARGETS)


def anomalies(*examples: tf.train.Example) -> set[str]:
    batch = ExamplesToRecordBatchDecoder().DecodeBatch([one.SerializeToString() for one in examples])
    statistics = stats_impl.generate_statistics_in_memory(batch, tfdv.StatsOptions())
    found = tfdv.validate_statistics(statistics, tfdv.load_schema_text(SCHEMA_FILE))
    return {*found.anomaly_info} | ({"dataset"} if found.HasField("dataset_anomaly_info") else set())


def test_good_examples_pass_whatever_the_targets() -> None:
    digital_silence = example()
    digital_silence.features.feature["loudness"].float_list.value[:] = [-120.0, 0.0, 6.0]
    digital_silence.features.feature["silence"].float_list.value[:] = [1.0, 0.0, 0.5]
    assert anomalies(example(), digital_silence) == set()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinity in its statistics
@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("split", "bytes_list", [b"eval"]),
        ("rate", "int64_list", [0]),
        ("channels", "int64_list", [0]),
        ("length", "int64_list", [0]),
        ("id", "bytes_list", [b"a", b"b"]),
        ("targets", "bytes_list", []),
        ("uri", "bytes_list", []),
        ("format", "bytes_list", []),
        ("loudness", "float_list", [float("nan")] * 3),
        ("loudness", "float_list", [float("-inf")] * 3),
        ("peak", "float_list", [0.5, 0.5, 32767.0]),
        ("silence", "float_list", [0.0, 0.0, 1.5]),
        ("bandwidth", "float_list", [-1.0, 0.0, 0.0]),
        ("cutoff", "float_list", [-1.0, 0.0, 0.0]),
        ("clipping", "float_list", [0.0, 1.5, 0.0]),
        ("dc_offset", "float_list", [float("nan")] * 3),
        ("non_finite", "int64_list", [0, 0, 1]),
    ],
)
def test_one_bad_value_is_found(name: str, kind: str, values: list) -> None:
    bad = example()
    bad.features.feature[name].Clear()
    getattr(bad.features.feature[name], kind).value[:] = values
    assert anomalies(example(), bad) == {name}


def test_a_new_feature_is_found() -> None:
    bad = example()
    bad.features.feature["colour"].bytes_list.value[:] = [b"red"]
    assert anomalies(bad) == {"colour"}


def test_reads_back_the_sample() -> None:
    sample = from_example(example().SerializeToString())
    assert (sample.id, sample.split) == ("song", "train")
    assert (sample.sample_rate, sample.channels, sample.length) == (44100, 2, 1000)
    assert list(sample.files) == list(TARGETS)
    assert sample.files["bass"] == AudioInfo("/data/bass.wav", "WAV/PCM_16", 44100, 2, 1000)


def test_no_index_is_no_empty_index(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no index of samples"):
        read_index(str(tmp_path))

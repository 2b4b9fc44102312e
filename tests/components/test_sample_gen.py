"""SampleGen's index, against what soundfile and NumPy say about the files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, standard_artifacts

from components.sample_gen import executor as sample_gen
from components.sample_gen.executor import Executor
from data_schema.index import read_index
from umx_model.data.track_folder import database_fingerprint
from umx_model.errors import InputError


def run(data: Path, folder: Path, targets: str = "vocals,drums", data_version: str = "") -> standard_artifacts.Examples:
    executor = Executor(BaseBeamExecutor.Context(tmp_dir=str(folder / "tmp"), unique_id="1"))
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "index")
    properties = {"data": str(data), "targets": targets, "data_version": data_version, "code_version": ""}
    executor.Do({}, {"examples": [examples]}, properties)
    return examples


def test_index_says_what_is_in_the_files(make_database: Callable, tmp_path: Path) -> None:
    make_database(tmp_path / "db", {"train": 2, "valid": 1, "test": 1}, sample_rate=16000, extension="flac")
    odd = tmp_path / "db" / "train" / "song01"
    sf.write(odd / "vocals.flac", np.zeros((12345, 2)), 16000, subtype="PCM_24")
    drums = sf.read(odd / "drums.flac")[0][:12345]
    (odd / "drums.flac").unlink()
    sf.write(odd / "drums.wav", 3 * drums, 16000, subtype="FLOAT")

    examples = run(tmp_path / "db", tmp_path)
    assert artifact_utils.decode_split_names(examples.split_names) == ["train", "valid", "test"]
    assert examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert examples.get_string_custom_property("data_version") == database_fingerprint(tmp_path / "db")

    seen = []
    for split in ("train", "valid", "test"):
        pattern = str(tmp_path / "index" / f"Split-{split}" / "*.gz")
        for record in tf.data.TFRecordDataset(tf.io.gfile.glob(pattern), "GZIP").as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            assert feature["split"].bytes_list.value[0].decode() == split
            assert list(feature["targets"].bytes_list.value) == [b"vocals", b"drums"]
            seen.append(f"{split}/{feature['id'].bytes_list.value[0].decode()}")
            assert_describes_files(feature, tmp_path / "db" / seen[-1])
    assert sorted(seen) == ["test/song00", "train/song00", "train/song01", "valid/song00"]
    assert [sample.id for sample in read_index(str(tmp_path / "index" / "Split-train"))] == ["song00", "song01"]


def assert_describes_files(feature: dict, folder: Path) -> None:
    for index, target in enumerate(("vocals", "drums")):
        [path] = folder.glob(f"{target}.*")
        info = sf.info(path)
        audio = sf.read(path, always_2d=True)[0]
        assert feature["uri"].bytes_list.value[index].decode() == str(path)
        assert feature["format"].bytes_list.value[index].decode() == f"{info.format}/{info.subtype}"
        assert feature["rate"].int64_list.value[0] == info.samplerate
        assert feature["channels"].int64_list.value[0] == info.channels
        assert feature["length"].int64_list.value[0] == info.frames
        assert feature["non_finite"].int64_list.value[index] == 0
        assert feature["peak"].float_list.value[index] == pytest.approx(np.abs(audio).max(), abs=1e-6)
        power = np.mean(audio**2)
        loudness = 10 * np.log10(power) if power else -120.0
        assert feature["loudness"].float_list.value[index] == pytest.approx(loudness, abs=0.01)
        tenths = [audio[start : start + info.samplerate // 10] for start in range(0, len(audio), info.samplerate // 10)]
        silent = np.mean([np.sqrt(np.mean(tenth**2)) < 1e-3 for tenth in tenths])
        assert feature["silence"].float_list.value[index] == pytest.approx(silent, abs=1e-6)
        assert (feature["bandwidth"].float_list.value[index] > 100) == bool(power)
        assert feature["cutoff"].float_list.value[index] == 0
        assert feature["clipping"].float_list.value[index] == 0
        offset = np.abs(audio.mean(axis=0)).max()
        assert feature["dc_offset"].float_list.value[index] == pytest.approx(offset, abs=1e-6)


def test_all_problems_are_told_at_once(make_database: Callable, tmp_path: Path) -> None:
    data = make_database(tmp_path / "db", sample_rate=8000, subtype="FLOAT")
    broken = data / "train" / "song00" / "vocals.wav"
    audio = sf.read(broken, dtype="float32")[0]
    audio[7, 1] = np.nan
    sf.write(broken, audio, 8000, subtype="FLOAT")
    truncated = data / "valid" / "song01" / "drums.wav"
    truncated.write_bytes(truncated.read_bytes()[:-4000])
    (data / "train" / "song02" / "drums.wav").unlink()
    with pytest.raises(InputError) as caught:
        run(data, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for part in ("song00/vocals.wav: 1 values are NaN", "song02: lacks the target 'drums'", "song01/drums.wav: "):
        assert any(part in line for line in lines), part


def test_a_failure_is_one_line(
    make_database: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nluck")

    data = make_database(tmp_path / "db", {"train": 1, "valid": 1}, sample_rate=8000)
    monkeypatch.setattr(sample_gen, "check_sample", fail)
    with pytest.raises(RuntimeError) as caught:
        run(data, tmp_path)
    assert str(caught.value) == "train/song00: RuntimeError: out of luck (and 1 more)"
    assert "Traceback" not in capfd.readouterr().err


def test_only_the_expected_database(make_database: Callable, tmp_path: Path) -> None:
    data = make_database(tmp_path / "db", {"train": 1, "valid": 1}, seconds=0.1)
    version = database_fingerprint(data)
    examples = run(data, tmp_path, data_version=version)
    assert examples.get_string_custom_property("data_version") == version
    (data / "train" / "song00").rename(data / "train" / "renamed")
    with pytest.raises(InputError, match=f"db: has changed: data_version should be {version}, and is [0-9a-f]+; leave"):
        run(data, tmp_path, data_version=version)


def test_missing_split(make_database: Callable, tmp_path: Path) -> None:
    data = make_database(tmp_path / "db", {"train": 1}, seconds=0.1)
    with pytest.raises(InputError, match="no folder 'valid'"):
        run(data, tmp_path)

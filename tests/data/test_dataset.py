"""The tf.data pipeline, held against soundfile's reading of the same files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from helpers import make_database, make_sample
from scipy import stats

from umx_model.data import augmentation
from umx_model.data.dataset import FixedSourcesTrackFolderDataset, reading_error
from umx_model.data.track_folder import read_database
from umx_model.errors import InputError

RATE = 8000
TARGETS = ["vocals", "drums"]
PLAIN = {"random_track_mix": False, "gain_range": None, "swap_channels": 0.0}

# Formats that are read inside the graph, and formats that libsndfile reads.
FORMATS = [
    *[("wav", "PCM_16"), ("wav", "FLOAT")],
    *[("wav", "PCM_24"), ("wav", "PCM_32"), ("wav", "PCM_U8"), ("flac", "PCM_16"), ("ogg", "VORBIS")],
]


def take(root: Path, count: int, **options) -> np.ndarray:
    dataset = FixedSourcesTrackFolderDataset(root, "train", TARGETS, 0.25, **options)
    return np.stack(list(dataset.take(count).as_numpy_iterator()))


def locate(excerpt: np.ndarray, sources: list[np.ndarray]) -> tuple[int, int]:
    """Find which source holds an excerpt `[samples, channels]`, and where."""
    for index, source in enumerate(sources):
        candidates = np.flatnonzero(np.all(source[: len(source) - len(excerpt) + 1] == excerpt[0], axis=1))
        for start in candidates:
            if np.array_equal(source[start : start + len(excerpt)], excerpt):
                return index, int(start)
    raise AssertionError("the excerpt is in no source")


def sources(root: Path, target: str, extension: str = "wav") -> list[np.ndarray]:
    files = sorted(root.glob(f"train/*/{target}.{extension}"))
    return [sf.read(file, dtype="float32", always_2d=True)[0] for file in files]


@pytest.fixture(scope="module")
def noise_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples of noise, so that every excerpt can be told from all others."""
    root = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for name in "abcd":
        for split in ("train", "valid"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for target in TARGETS:
                waveform = generator.uniform(-0.9, 0.9, (RATE + 100 * ord(name), 2))
                sf.write(folder / f"{target}.wav", waveform, RATE)
    return root


@pytest.mark.parametrize(("extension", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_excerpts_equal_what_soundfile_reads(tmp_path: Path, extension: str, subtype: str, channels: int) -> None:
    generator = np.random.default_rng(1)
    for split in ("train", "valid"):
        folder = make_sample(tmp_path / split / "a", TARGETS, 0.01)
        for target in TARGETS:
            (folder / f"{target}.wav").unlink()
            waveform = generator.uniform(-0.9, 0.9, (RATE + 1, channels))
            sf.write(folder / f"{target}.{extension}", waveform, RATE, subtype=subtype)
    excerpts = take(tmp_path, 4, **PLAIN)
    assert excerpts.shape == (4, 2000, channels, 2)
    for excerpt in excerpts:
        places = [locate(excerpt[..., t], sources(tmp_path, target, extension)) for t, target in enumerate(TARGETS)]
        assert places[0] == places[1]


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    root = make_database(tmp_path, {"train": 1, "valid": 1}, sample_rate=RATE)
    make_sample(root / "train" / "float", sample_rate=RATE, seed=7, subtype="FLOAT")
    make_sample(root / "train" / "flac", sample_rate=RATE, seed=8, extension="flac")
    found = {extension: sources(root, "drums", extension) for extension in ("wav", "flac")}
    for excerpt in take(root, 12, **PLAIN):
        locate(excerpt[..., 1], found["wav"] + found["flac"])


def test_wav_with_odd_chunks_before_its_samples(tmp_path: Path) -> None:
    root = make_database(tmp_path, {"train": 1, "valid": 1}, sample_rate=RATE)
    path = root / "train" / "song00" / "drums.wav"
    content = path.read_bytes()
    path.write_bytes(content[:36] + b"LIST\x03\x00\x00\x00abc\x00" + content[36:])
    expected = sources(root, "drums")
    for excerpt in take(root, 3, **PLAIN):
        locate(excerpt[..., 1], expected)


def test_excerpts_do_not_depend_on_parallelism(noise_database: Path) -> None:
    one = take(noise_database, 64, num_parallel_calls=1)
    # The reader that this guards against mixed up files in a few percent of parallel reads.
    for calls in (4, 16):
        np.testing.assert_array_equal(take(noise_database, 64, num_parallel_calls=calls), one)


def test_a_later_start_continues_the_sequence(noise_database: Path) -> None:
    whole = take(noise_database, 20)
    np.testing.assert_array_equal(take(noise_database, 9, first_excerpt=11), whole[11:])


@pytest.mark.parametrize("first", [0, 5])
def test_shards_share_out_the_sequence(noise_database: Path, first: int) -> None:
    whole = take(noise_database, 24 - first, first_excerpt=first)
    for shard in range(3):
        mine = [number - first for number in range(first, 24) if number // 2 % 3 == shard]
        got = take(noise_database, len(mine), first_excerpt=first, shards=3, shard=shard, shard_block=2)
        np.testing.assert_array_equal(got, whole[mine])


def test_shards_share_out_whole_samples(noise_database: Path) -> None:
    def pieces(**options) -> list[np.ndarray]:
        return list(FixedSourcesTrackFolderDataset(noise_database, "valid", TARGETS, 0.5, **options))

    shares = [pieces(shards=2, shard=shard) for shard in range(2)]
    for number, piece in enumerate(pieces()):
        np.testing.assert_array_equal(shares[number % 2][number // 2], piece)


def test_only_the_shard_is_read(tmp_path: Path) -> None:
    root = make_database(tmp_path, {"train": 2, "valid": 1}, TARGETS, 1.0, RATE)
    dataset = FixedSourcesTrackFolderDataset(root, "train", TARGETS, 1.0, **PLAIN)
    read = FixedSourcesTrackFolderDataset(root, "train", TARGETS, 1.0, **PLAIN, shards=2, shard=0)
    which = [locate(excerpt[..., 0].numpy(), sources(root, "vocals"))[0] for excerpt in dataset.take(2)]
    (root / "train" / f"song{which[1]:02d}" / "vocals.wav").unlink()
    next(iter(read))
    with pytest.raises(tf.errors.OpError):
        list(dataset.take(2))


def test_the_seed_decides(noise_database: Path) -> None:
    np.testing.assert_array_equal(take(noise_database, 8, seed=1), take(noise_database, 8, seed=1))
    assert not np.array_equal(take(noise_database, 8, seed=1), take(noise_database, 8, seed=2))


def test_each_round_takes_every_sample_once(noise_database: Path) -> None:
    found = [
        locate(excerpt[..., 0], sources(noise_database, "vocals")) for excerpt in take(noise_database, 40, **PLAIN)
    ]
    rounds = np.array([index for index, _ in found]).reshape(10, 4)
    assert np.array_equal(np.sort(rounds, axis=1), np.tile(np.arange(4), (10, 1)))
    assert len({tuple(one) for one in rounds}) > 3
    assert len({start for _, start in found}) > 35


def test_random_track_mixing_draws_targets_independently(noise_database: Path) -> None:
    options = {**PLAIN, "random_track_mix": True}
    both = [sources(noise_database, target) for target in TARGETS]
    table = np.zeros((4, 4))
    for excerpt in take(noise_database, 400, **options):
        (vocals, start), (drums, other) = (locate(excerpt[..., t], both[t]) for t in range(2))
        table[vocals, drums] += 1
        assert start != other
    assert table.min() > 0
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_gains_and_swaps_are_all_that_augmentation_changes(noise_database: Path) -> None:
    plain = take(noise_database, 30, **PLAIN)
    changed = take(noise_database, 30, random_track_mix=False, gain_range=(0.25, 1.25), swap_channels=0.5)
    swaps = 0
    for before, after in zip(plain, changed, strict=True):
        for target in range(2):
            gain = np.linalg.norm(after[..., target]) / np.linalg.norm(before[..., target])
            assert 0.25 <= gain <= 1.25
            straight = np.allclose(after[..., target], gain * before[..., target], atol=1e-5)
            swapped = np.allclose(after[..., target], gain * before[:, ::-1, target], atol=1e-5)
            assert straight != swapped
            swaps += swapped
    assert 15 < swaps < 45


@pytest.mark.parametrize("random_track_mix", [False, True])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_augmented_targets_are_drawn_gains_times_the_audio_exactly(
    tmp_path: Path, subtype: str, random_track_mix: bool
) -> None:
    root = make_database(tmp_path, {"train": 3, "valid": 1}, TARGETS, 1.0, RATE, 2, subtype)
    both = [sources(root, target) for target in TARGETS]
    lengths = tf.constant([RATE] * 3, tf.int64)
    order = augmentation.sample_order(42, 3, 2 if random_track_mix else 1)
    excerpts = take(root, 12, random_track_mix=random_track_mix)
    for excerpt, (number, samples) in zip(excerpts, order, strict=False):
        drawn = augmentation.draw(number, samples, 42, lengths, 2000, 2, (0.25, 1.25), 0.5)
        expected = []
        for target in range(2):
            start = int(drawn.starts[target])
            audio = both[target][int(drawn.samples[target])][start : start + 2000]
            expected.append((audio[:, ::-1] if drawn.swaps[target] else audio) * drawn.gains[target].numpy())
        np.testing.assert_array_equal(excerpt, np.stack(expected, axis=-1))
        # The mixture that training makes of them.
        np.testing.assert_array_equal(tf.reduce_sum(excerpt, axis=-1), expected[0] + expected[1])


@pytest.mark.parametrize("random_track_mix", [False, True])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_speed_plays_a_tone_higher_or_lower(tmp_path: Path, subtype: str, random_track_mix: bool) -> None:
    frequencies = {"vocals": 440.0, "drums": 300.0}
    for split in ("train", "valid"):
        folder = tmp_path / split / "a"
        folder.mkdir(parents=True)
        for target, frequency in frequencies.items():
            tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)
            sf.write(folder / f"{target}.wav", np.stack([tone, -tone], axis=-1), RATE, subtype=subtype)
    options = {"gain_range": (0.5, 1.0), "swap_channels": 0.5, "speed_range": (0.5, 2.0)}
    excerpts = take(tmp_path, 8, random_track_mix=random_track_mix, **options)
    order = augmentation.sample_order(42, 1, 2 if random_track_mix else 1)
    for excerpt, (number, samples) in zip(excerpts, order, strict=False):
        drawn = augmentation.draw(number, samples, 42, tf.constant([RATE], tf.int64), 2000, 2, *options.values())
        assert (drawn.speeds[0] == drawn.speeds[1]) == (not random_track_mix)
        for target, frequency in enumerate(frequencies.values()):
            times = (int(drawn.starts[target]) + float(drawn.speeds[target]) * np.arange(2000)) / RATE
            tone = 0.5 * float(drawn.gains[target]) * np.sin(2 * np.pi * frequency * times)
            expected = np.stack([tone, -tone], axis=-1) * (-1 if drawn.swaps[target] else 1)
            # Where the tone is cut off, the resampler rings.
            np.testing.assert_allclose(excerpt[200:-200, :, target], expected[200:-200], atol=2e-3)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_a_sample_exactly_as_long_as_the_fastest_excerpt(tmp_path: Path, extension: str) -> None:
    # As a float32, 1.2 is more than 1.2, and takes one sample more than there is.
    root = tmp_path / extension
    for split in ("train", "valid"):
        folder = root / split / "a"
        folder.mkdir(parents=True)
        for target in TARGETS:
            sf.write(folder / f"{target}.{extension}", np.full((2400, 2), 0.5), RATE)
    for excerpt in take(root, 3, gain_range=None, swap_channels=0.0, speed_range=(1.2, 1.2)):
        np.testing.assert_allclose(excerpt[200:-200], 0.5, atol=1e-3)


def test_speeds_have_the_promised_distribution() -> None:
    drawn = draws(3000, speed_range=(0.5, 1.1))
    octaves = np.log2(drawn.speeds.ravel())
    assert stats.kstest(octaves, stats.uniform(-1, np.log2(1.1) + 1).cdf).pvalue > 1e-3
    lengths = np.array([1000, 2000, 5000])[drawn.samples]
    assert np.all(drawn.starts + np.ceil(900 * drawn.speeds.astype(np.float64)) <= lengths)
    assert np.all(draws(20).speeds == 1)
    together = draws(20, random_track_mix=False, speed_range=(0.5, 1.1)).speeds
    assert np.all(together == together[:, :1])
    assert len(np.unique(together)) == 20


def test_some_targets_are_silent() -> None:
    drawn = draws(3000, silent_targets=0.2)
    silent = drawn.gains == 0
    assert stats.binomtest(int(silent.sum()), silent.size, 0.2).pvalue > 1e-3
    assert np.abs(np.corrcoef(silent, rowvar=False)[np.triu_indices(3, 1)]).max() < 0.07
    np.testing.assert_array_equal(drawn.gains[~silent], draws(3000).gains[~silent])


def test_other_draws_do_not_depend_on_the_speeds() -> None:
    lengths = tf.constant([100_000] * 3, tf.int64)
    plain, fast = draws(20, lengths=lengths), draws(20, lengths=lengths, speed_range=(2.0, 2.0))
    for name in ("samples", "gains", "swaps"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(fast, name))


def test_a_sample_too_short_for_the_highest_speed(database: Path) -> None:
    FixedSourcesTrackFolderDataset(database, "train", excerpt_seconds=0.6, speed_range=(0.5, 1.0))
    with pytest.raises(InputError, match="an excerpt takes 2.4 s"):
        FixedSourcesTrackFolderDataset(database, "train", excerpt_seconds=0.6, speed_range=(1.0, 4.0))


def draws(count: int, **options) -> augmentation.Draw:
    arguments = {
        "seed": 42,
        "lengths": tf.constant([1000, 2000, 5000], tf.int64),
        "excerpt_samples": 900,
        "targets": 3,
        "gain_range": (0.25, 1.25),
        "swap_channels": 0.3,
        **options,
    }
    sequences = 3 if arguments.pop("random_track_mix", True) else 1
    order = augmentation.sample_order(arguments["seed"], len(arguments["lengths"]), sequences)
    drawn = order.take(count).map(lambda number, samples: augmentation.draw(number, samples, **arguments))
    return augmentation.Draw(*(np.stack(values) for values in zip(*drawn.as_numpy_iterator(), strict=True)))


@pytest.mark.parametrize("first", [0, 3, 4, 11, 10**15 + 1])
def test_order_is_numbered_and_continues_anywhere(first: int) -> None:
    whole = augmentation.sample_order(1, 4, 2, first // 4 * 4).take(20)
    numbers, samples = zip(*whole.skip(first % 4).as_numpy_iterator(), strict=True)
    assert numbers == tuple(range(first, first + len(numbers)))
    later = [order for _, order in augmentation.sample_order(1, 4, 2, first).take(len(numbers)).as_numpy_iterator()]
    np.testing.assert_array_equal(later, samples)


def test_all_orders_of_a_round_are_equally_likely() -> None:
    orders = np.array([order for _, order in augmentation.sample_order(1, 3, 1).take(6000).as_numpy_iterator()])
    _, counts = np.unique(orders.reshape(2000, 3), axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_large_database_is_not_put_in_order_for_every_excerpt() -> None:
    start = time.monotonic()
    drawn = draws(1000, lengths=tf.fill([100_000], tf.constant(1000, tf.int64)))
    assert len(np.unique(drawn.samples[:, 0])) == 1000
    assert time.monotonic() - start < 10  # one order takes 0.05 s


def test_draws_have_the_promised_distributions() -> None:
    drawn = draws(3000)
    assert stats.kstest(drawn.gains.ravel(), stats.uniform(0.25, 1.0).cdf).pvalue > 1e-3
    assert stats.binomtest(int(drawn.swaps.sum()), drawn.swaps.size, 0.3).pvalue > 1e-3
    for sample, length in enumerate((1000, 2000, 5000)):
        starts = drawn.starts[drawn.samples == sample]
        assert (starts.min(), starts.max() <= length - 900) == (pytest.approx(0, abs=20), True)
        assert stats.kstest((starts + 0.5) / (length - 899), "uniform").pvalue > 1e-3
    correlations = np.corrcoef(drawn.gains, rowvar=False)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.07
    pairs, counts = np.unique(drawn.samples[:, :2], axis=0, return_counts=True)
    assert len(pairs) == 9
    assert stats.chisquare(counts).pvalue > 1e-3


def test_without_augmentation_the_draws_are_trivial() -> None:
    drawn = draws(50, random_track_mix=False, gain_range=None, swap_channels=0.0)
    assert np.all(drawn.gains == 1)
    assert not drawn.swaps.any()
    assert np.all(drawn.samples == drawn.samples[:, :1])
    assert np.all(drawn.starts == drawn.starts[:, :1])
    assert draws(20, swap_channels=1.0).swaps.all()


def test_a_sample_exactly_as_long_as_the_excerpt() -> None:
    assert np.all(draws(20, lengths=tf.constant([900], tf.int64)).starts == 0)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_whole_samples_come_once_in_order_and_unchanged(tmp_path: Path, split: str) -> None:
    root = make_database(tmp_path, {"train": 1, split: 2}, TARGETS, 1.1, RATE)
    make_sample(root / split / "song02", TARGETS, 1.0, RATE, extension="flac", seed=9)
    pieces = list(FixedSourcesTrackFolderDataset(root, split, TARGETS, 0.5).as_numpy_iterator())
    assert [len(piece) for piece in pieces] == [4000, 4000, 800, 4000, 4000, 800, 4000, 4000]
    for target, name in enumerate(TARGETS):
        files = sorted((root / split).glob(f"*/{name}.*"))
        expected = np.concatenate([sf.read(file, dtype="float32")[0] for file in files])
        np.testing.assert_array_equal(np.concatenate(pieces)[..., target], expected)


def test_mixture_is_the_sum_of_the_targets(tmp_path: Path) -> None:
    root = make_database(tmp_path, {"train": 1, "valid": 1}, TARGETS, 1.0, RATE)
    piece = next(iter(FixedSourcesTrackFolderDataset(root, "valid", TARGETS, 1.0)))
    expected = sum(sf.read(root / f"valid/song00/{target}.wav", dtype="float32")[0] for target in TARGETS)
    np.testing.assert_allclose(tf.reduce_sum(piece, -1), expected, atol=1e-7)


def test_it_is_a_dataset_with_static_shapes(database: Path) -> None:
    train = FixedSourcesTrackFolderDataset(database, "train", TARGETS, 0.5)
    assert isinstance(train, tf.data.Dataset)
    assert train.element_spec == tf.TensorSpec([22050, 2, 2], tf.float32)
    assert (train.sample_rate, train.channels, train.targets) == (44100, 2, ("vocals", "drums"))
    assert [sample.id for sample in train.samples] == ["song00", "song01", "song02"]
    assert next(iter(train.batch(3).prefetch(1))).shape == (3, 22050, 2, 2)
    valid = FixedSourcesTrackFolderDataset(database, "valid", TARGETS, 0.5)
    assert valid.element_spec == tf.TensorSpec([None, 2, 2], tf.float32)


def test_samples_inspected_before(database: Path) -> None:
    samples = read_database(database, TARGETS)["train"]
    dataset = FixedSourcesTrackFolderDataset.from_samples(samples, targets=TARGETS[::-1], excerpt_seconds=0.5, **PLAIN)
    assert dataset.targets == ("drums", "vocals")
    direct = FixedSourcesTrackFolderDataset(database, "train", TARGETS, 0.5, **PLAIN)
    np.testing.assert_array_equal(next(iter(dataset))[..., ::-1], next(iter(direct)))


def test_files_on_another_file_system(database: Path) -> None:
    root = f"ram://{database.parent.name}"
    for folder, _, files in os.walk(database):
        for file in files:
            path = Path(folder, file)
            tf.io.gfile.makedirs(f"{root}/{path.relative_to(database).parent}")
            tf.io.gfile.copy(str(path), f"{root}/{path.relative_to(database)}")
    np.testing.assert_array_equal(
        next(iter(FixedSourcesTrackFolderDataset(root, "train", TARGETS, 0.5))),
        next(iter(FixedSourcesTrackFolderDataset(database, "train", TARGETS, 0.5))),
    )


def test_sample_shorter_than_the_excerpt(database: Path) -> None:
    make_sample(database / "train" / "short", TARGETS, 0.4)
    with pytest.raises(
        InputError, match=r"^train/short: 0\.40 s long, an excerpt takes 0\.5 s \(17640 of 22050 samples\)"
    ):
        FixedSourcesTrackFolderDataset(database, "train", TARGETS, 0.5)


def test_samples_of_different_rates(database: Path) -> None:
    make_sample(database / "train" / "other", TARGETS, 2.0, sample_rate=48000)
    with pytest.raises(InputError, match=r"train/other has 48000 Hz|train/song00 44100 Hz"):
        FixedSourcesTrackFolderDataset(database, "train", TARGETS, 0.5)


@pytest.mark.parametrize("extension", ["wav", "flac"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_what_goes_wrong_while_reading_names_the_file(tmp_path: Path, extension: str, damage: str) -> None:
    root = make_database(tmp_path, {"train": 1, "valid": 1}, TARGETS, 2.0, extension=extension)
    dataset = FixedSourcesTrackFolderDataset(root, "train", TARGETS, 2.0)
    path = root / "train" / "song00" / f"drums.{extension}"
    if damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 20_000)
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(dataset))
    explained = reading_error(caught.value)
    assert isinstance(explained, InputError)
    assert str(explained).startswith(str(path))
    assert "\n" not in str(explained)


def test_other_errors_are_not_blamed_on_files() -> None:
    assert reading_error(tf.errors.ResourceExhaustedError(None, None, "out of memory")) is None


def test_a_program_may_end_while_excerpts_are_read_ahead(noise_database: Path) -> None:
    """Threads that called Python while it ended waited for it, and it for them."""
    script = (
        "from umx_model import FixedSourcesTrackFolderDataset\n"
        f"excerpts = FixedSourcesTrackFolderDataset({str(noise_database)!r}, 'train', {TARGETS}, 0.25)\n"
        "print(next(iter_ := iter(excerpts.batch(16).prefetch(64))).shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "(16, 2000, 2, 2)\n"

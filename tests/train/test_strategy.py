import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.train.strategy import Workers, choose_strategy, is_chief

TWO = ["one:2222", "two:2222"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[]", "malformed"),
        ({"cluster": {"worker": "one:2222"}}, "malformed"),
        ({"cluster": {"worker": ["one", "two"]}}, "malformed"),
        ({"cluster": {"worker": TWO}}, "task.type is None"),
        ({"cluster": {"worker": TWO}, "task": {"type": "evaluator", "index": 0}}, "task.type is 'evaluator'"),
        ({"cluster": {"worker": TWO, "ps": ["p:1"]}, "task": {"type": "worker", "index": 0}}, "'ps'"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker", "index": 2}}, "task.index is 2; .* 2 tasks"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker"}}, "task.index is None"),
        ({"cluster": {"worker": TWO}, "task": {"type": "chief", "index": 0}}, "has 0 tasks of type chief"),
        ({"cluster": {"chief": TWO}, "task": {"type": "chief", "index": 0}}, "2 chiefs"),
        ({"cluster": {"worker": ["one:1", "one:1"]}, "task": {"type": "worker", "index": 0}}, "twice"),
    ],
)
def test_a_wrong_tf_config_is_refused(config: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError, match=f"TF_CONFIG: .*{message}") as error:
        choose_strategy()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"cluster": {}, "environment": "cloud"},
        {"cluster": {"worker": ["one:2222"]}, "task": {"type": "worker", "index": 0}},
        # Vertex AI's, of a job on one machine.
        {
            "cluster": {"chief": ["127.0.0.1:2222"]},
            "task": {"type": "chief", "index": 0, "cloud": "x"},
            "environment": "cloud",
            "job": '{"python_module": "x"}',
        },
    ],
)
def test_alone_it_trains_as_without_tf_config(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert choose_strategy() is tf.distribute.get_strategy()
    assert is_chief(choose_strategy())


def test_the_strategy_whose_scope_is_entered_is_taken() -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        assert choose_strategy() is strategy


def test_a_worker_alone_hears_itself() -> None:
    workers = Workers(tf.distribute.get_strategy())
    assert (workers.count, workers.chief) == (1, True)
    assert workers.maximum(True, 0.5) == [True, 0.5]
    assert workers.share_text("schön") == "schön"
    np.testing.assert_array_equal(workers.share(np.arange(3, dtype=np.uint32)), [0, 1, 2])
    workers.expect_same("profile", "x")

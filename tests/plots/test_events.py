"""TensorBoard events, read back."""

import json
import pathlib
import struct
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tensorboardX")
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

from ghn_jax.plots.__main__ import PlotOptions, plot

METRICS = [
    {"step": 1, "loss": 2.5, "top1": 10.0, "seconds": 30.0},
    {"step": 2, "loss": None, "top1": 20.0, "seconds": 50.0},
    {"step": 2, "val_top1": 15.0},
]


def read(path: pathlib.Path) -> list[Any]:
    """Events of a file of TFRecords: length, checksum, bytes, checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_events_are_the_finite_numbers_of_a_run(tmp_path: pathlib.Path):
    run, logs = tmp_path / "run", tmp_path / "logs"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    for _ in range(2):  # the second call replaces what the first one wrote
        plot(PlotOptions(run, tensorboard=logs))
    (path,) = logs.iterdir()
    scalars = {
        (value.tag, event.step): (value.simple_value, event.wall_time)
        for event in read(path)
        for value in event.summary.value
    }
    assert {key: value for key, (value, _) in scalars.items() if key[0] != "seconds"} == {
        ("loss", 1): 2.5,
        ("top1", 1): 10.0,
        ("top1", 2): 20.0,
        ("val_top1", 2): 15.0,
    }
    times = [scalars[key][1] for key in (("top1", 1), ("top1", 2), ("val_top1", 2))]
    assert times[1] - times[0] == pytest.approx(20, abs=1e-3)
    assert times[2] == pytest.approx((run / "metrics.jsonl").stat().st_mtime, abs=1e-3)

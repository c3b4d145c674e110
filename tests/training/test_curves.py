"""Curves: what resuming does to them."""

import io
import json

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rin_jax.sampling.conditions import Conditions
from rin_jax.training import curves
from rin_jax.training.loop import show


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path):
    writer = curves.Writer(str(tmp_path), 0, active=True)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": float(step)})
    writer.close()
    writer = curves.Writer(str(tmp_path), 2, active=True)
    writer.scalars(3, {"loss": 30.0})
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": s, "loss": v} for s, v in ((1, 1.0), (2, 2.0), (3, 30.0))]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = curves.Writer(str(tmp_path), 2, active=True)
    writer.scalars(3, {"loss": 3.0})
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]


def test_a_moving_picture_is_a_file_and_moves_in_tensorboard(tmp_path):
    writer = curves.Writer(str(tmp_path), 0, active=True)
    writer.moving(7, "progress", [np.full((6, 9, 3), 40 * t, np.uint8) for t in range(5)])
    writer.close()
    written = (tmp_path / "progress" / "00000007.gif").read_bytes()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    (event,) = events.Images("samples/progress_moving")
    assert (event.step, event.width, event.height) == (7, 9, 6)
    assert event.encoded_image_string == written
    assert Image.open(io.BytesIO(written)).n_frames == 5


def test_clips_of_a_run_are_shown_still_and_moving(tmp_path):
    writer = curves.Writer(str(tmp_path), 0, active=True)
    conditions = Conditions(np.full(8, -1), None, 0, 0, 1.0)
    show(writer, 1, np.zeros((8, 8, 8, 1), np.uint8), conditions)
    assert [path.name for path in (tmp_path / "progress").iterdir()] == ["00000001.png"]
    clips = np.random.default_rng(0).integers(0, 256, (8, 5, 8, 8, 1), dtype=np.uint8)
    show(writer, 2, clips, conditions)
    writer.close()
    assert not writer.lacks(2, "progress")
    assert Image.open(tmp_path / "progress" / "00000002.gif").n_frames == 5
    assert Image.open(tmp_path / "progress" / "00000002.png").size == (5 * 54 + 2, 8 * 54 + 2)


def test_other_processes_write_nothing(tmp_path):
    writer = curves.Writer(str(tmp_path / "run"), 0, active=False)
    writer.scalars(1, {"loss": 1.0})
    writer.image(1, "progress", np.zeros((4, 4, 3), np.uint8))
    writer.moving(1, "progress", [np.zeros((4, 4, 3), np.uint8)])
    writer.close()
    assert not (tmp_path / "run").exists()


def test_the_configuration_is_hyperparameters_and_the_loss_has_the_first_chart(tmp_path):
    writer = curves.Writer(str(tmp_path), 0, active=True)
    config = {"seed": 3, "model": {"depth": 4, "remat": "full"}, "ema": {"decays": (0.9, 0.99)},
              "data": {"flip": True, "clip": None}}  # fmt: skip
    writer.describe(0, config)
    writer.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (found["seed"].number_value, found["model.depth"].number_value) == (3, 4)
    assert found["model.remat"].string_value == "full"
    assert found["ema.decays"].string_value == "(0.9, 0.99)"
    assert found["data.flip"].bool_value
    (layout,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(layout.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert next(iter(charts)) == "loss"
    assert charts["loss"][0] == "train/loss"
    assert len(charts["loss by log-SNR"]) == 8

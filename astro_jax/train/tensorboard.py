"""TensorBoard's event files: the curves of a stage, for `tensorboard --logdir RUN`."""

from __future__ import annotations

from collections.abc import Sequence

import tensorboardX
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from astro_jax.storage import Json


class EventWriter:
    """Writes metrics as scalars into one event file. A thread writes to disk, so a step does not wait.

    Args:
      folder: on a local disk. Event files in it are removed: the caller writes all records again.
    """

    def __init__(self, folder: epath.Path):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = tensorboardX.FileWriter(str(folder), flush_secs=10)
        # START at step 0: a TensorBoard that watches the folder drops the curves of the removed file.
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=0)

    def write(self, records: Sequence[Json]) -> None:
        """Add the values of records of metrics.jsonl; the tag of a curve is the name of the metric."""
        for record in records:
            values = [Summary.Value(tag=name, simple_value=x) for name, x in record.items() if name != "step"]
            self._writer.add_summary(Summary(value=values), record["step"])

    def close(self) -> None:
        """Write what is still in the queue, and close the file."""
        self._writer.close()

"""Reads TensorBoard's event files back."""

import struct

from tensorboardX.proto import event_pb2


def read_events(folder):
    """The events of the one event file in a folder. A torn record at its end is left out."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while len(data) >= 12:
        (size,) = struct.unpack("Q", data[:8])  # then 4 bytes of checksum, the event, 4 bytes of checksum
        if len(data) < size + 16:
            break
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[size + 16 :]
    return events


def read_scalars(folder):
    """[(step, {name: value})], in the order of the file."""
    rows = []
    for event in read_events(folder):
        for value in event.summary.value:
            if not rows or rows[-1][0] != event.step:
                rows.append((event.step, {}))
            assert value.tag not in rows[-1][1]
            rows[-1][1][value.tag] = value.simple_value
    return rows

"""Write JSONL files of problems."""

import json

from etils import epath


def write(path, *records):
    """Write one record a line, and return the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return epath.Path(path)

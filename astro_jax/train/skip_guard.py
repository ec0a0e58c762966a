"""The guard that stops a run of steps without a finite loss and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.storage import Json

SHOWN_IDS = 20  # ids of one batch in a message


class SkipGuard:
    """Counts skipped steps in a row, and stops the run after too many.

    One skipped step is a batch that does harm. Many in a row are damaged parameters: the update before the first of
    them was too large.

    Args:
      stage: label of the messages.
      max_skipped_steps: skipped steps in a row that stop the run.
      updates: optimizer steps of a step. A step is skipped if none of them was applied.

    Attributes:
      in_a_row: skipped steps since the last step that was not skipped. A checkpoint is only saved while this is 0, so a
        resumed run starts at 0.
    """

    def __init__(self, stage: str, max_skipped_steps: int, updates: int = 1):
        self.stage, self.max_skipped_steps, self.updates, self.in_a_row = stage, max_skipped_steps, updates, 0
        self._examples: dict[int, Sequence[str]] = {}

    def add(self, step: int, examples: Sequence[str]) -> None:
        """Name the examples of a step whose metrics are not fetched yet."""
        self._examples[step] = examples

    def check(self, records: Iterable[Json], checkpoints: Sequence[int]) -> None:
        """Look at the fetched metrics of some steps, in order.

        Args:
          records: lines of metrics.jsonl.
          checkpoints: the steps of the checkpoints.

        Raises:
          AstroError: after `max_skipped_steps` skipped steps in a row.
        """
        for record in records:
            examples = self._examples.pop(record["step"])
            skipped = int(record["skipped_steps"])
            is_whole = skipped + record.get("no_gradient_steps", 0) >= self.updates
            self.in_a_row = self.in_a_row + 1 if skipped and is_whole else 0
            if not skipped:
                continue
            first, last = record["step"] - self.in_a_row + 1, record["step"]
            names = " ".join(examples[:SHOWN_IDS])
            if (more := len(examples) - SHOWN_IDS) > 0:
                names += f" and {more} more"
            if self.in_a_row < self.max_skipped_steps:
                what = "is skipped" if self.updates == 1 else f"is skipped in {skipped} of {self.updates} updates"
                log(f"{self.stage}: step {last} {what}, its loss or gradient is not finite; its batch: {names}")
                continue
            # The state before the first of these steps is not proven: the update that made it may have damaged it.
            proven = max((step for step in checkpoints if step < first - 1), default=None)
            raise AstroError(
                f"{self.stage}: no finite loss and gradient in steps {first} to {last}; the batch of step {last}: "
                f"{names}; the last good checkpoint: {'none' if proven is None else f'step {proven}'}; lower "
                "learning_rate, or remove these examples"
            )

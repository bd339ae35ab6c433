"""Which pictures of answered cells are kept, and their way to the database, without making any caller wait.

    never      none: the default
    sampled    a share of all cells, drawn by their ids
    referred   the same, and each cell that was referred: uncertain, of poor quality or unlike what the version knows

A picture that finds the queue full, by number or by bytes, is dropped and counted; its prediction is stored all the
same. An image that was refused has no answer and leaves no picture.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from blastwatch.decision import REFER
from blastwatch.images import decode
from blastwatch.settings import KEEP_REFERRED, KEEP_SAMPLED, Settings
from monitoring.capture import QueuedWriter, nothing
from monitoring.image_store import ImageRecord, ImageStore, open_image_store
from monitoring.store import PredictionRecord

QUEUE_PICTURES, QUEUE_BYTES = 256, 64 << 20  # image files that wait, as the callers sent them
FAST = 1  # zlib's level: 49 instead of 41 KiB a cell of 450x450 px, in less than half of the time


def reason_to_keep(policy: str, share: float, record: PredictionRecord) -> str:
    """Why the policy keeps the picture of this cell; "" where it does not.

    Args:
        policy: one of `blastwatch.settings.IMAGE_POLICIES`.
        share: of all cells, 0 to 1.
    """
    if policy == KEEP_REFERRED and record.decision == REFER:
        return KEEP_REFERRED
    drawn = int(record.id[:8], 16) / 16**8 < share  # ids are random
    return KEEP_SAMPLED if policy in (KEEP_SAMPLED, KEEP_REFERRED) and drawn else ""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """A picture on its way: the file as it was sent, which the writer's thread decodes."""

    prediction: PredictionRecord
    reason: str
    file: bytes
    max_pixels: int

    def record(self) -> ImageRecord:
        """The picture as it is stored; made anew at each attempt, for it takes several times what the file does."""
        said, out = self.prediction, io.BytesIO()
        Image.fromarray(decode(self.file, max_pixels=self.max_pixels)).save(out, "PNG", compress_level=FAST)
        return ImageRecord(id=said.id, time=said.time, reason=self.reason, patient=said.patient, png=out.getvalue())


class _Pictures:
    """The store as the writer's thread sees it."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def add(self, waiting: Sequence[_Waiting]) -> None:
        self._store.add([cell.record() for cell in waiting])

    def close(self) -> None:
        self._store.close()


class ImageCapture:
    """Keeps the pictures that the policy wants; close it to flush what waits.

    Args:
        on_stored, on_dropped, on_failed: as in `monitoring.capture.QueuedWriter`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_stored: Callable[[int], None] = nothing,
        on_dropped: Callable[[int], None] = nothing,
        on_failed: Callable[[int], None] = nothing,
    ) -> None:
        self._policy, self._share = settings.keep_images, settings.keep_share
        self._max_pixels = settings.max_image_pixels
        self._writer = QueuedWriter[_Waiting](
            lambda: _Pictures(open_image_store(settings.predictions_url)),
            queue_size=QUEUE_PICTURES,
            batch_rows=1,  # `QUEUE_BYTES` bounds the files, so no more than one is a PNG at a time
            size_of=lambda waiting: len(waiting.file),
            queue_bytes=QUEUE_BYTES,
            on_stored=on_stored,
            on_dropped=on_dropped,
            on_failed=on_failed,
        )

    def offer(self, record: PredictionRecord, file: bytes) -> None:
        """Hand over a cell that was answered; `file` is the image as it was sent. Never waits, never raises."""
        reason = reason_to_keep(self._policy, self._share, record)
        if reason:
            self._writer.submit(_Waiting(prediction=record, reason=reason, file=file, max_pixels=self._max_pixels))

    def close(self) -> None:
        """Take no more, and write what waits."""
        self._writer.close()

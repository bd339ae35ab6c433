"""Hook of schemathesis: what it sends for a file is a cell, damaged or not, or any bytes."""

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image

from tests.drawn import draw_cell


def _cell(number: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_cell(number, side=64, radius=20)).save(buffer, format=kind)
    return buffer.getvalue()


cells = st.sampled_from([_cell(number, kind) for number, kind in enumerate(("PNG", "BMP", "JPEG"))])
cut = st.builds(lambda data, share: data[: int(share * len(data))], cells, st.floats(0, 1))
schemathesis.openapi.format("binary", st.one_of(cells, cut, st.binary(max_size=200)))

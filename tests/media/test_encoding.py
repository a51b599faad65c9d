"""Encoding beside the drawing: order, memory and errors."""

import threading
import time

import pytest
from PIL import Image

from stepvar.media.encoding import BackgroundEncoder, encode_png


def test_files_are_committed_in_order_on_the_callers_thread():
    committed, threads = [], set()

    def commit(content):
        committed.append(content)
        threads.add(threading.current_thread())

    def encode(index):
        time.sleep(0.01 * (3 - index % 4))
        return b"%d" % index

    with BackgroundEncoder(threads=3) as encoder:
        for index in range(12):
            encoder.add(lambda index=index: encode(index), commit)
    assert committed == [b"%d" % index for index in range(12)]
    assert threads == {threading.main_thread()}


def test_adding_does_not_wait_until_too_many_are_pending():
    release, committed = threading.Event(), []

    def encode():
        release.wait(10)
        return b""

    with BackgroundEncoder(threads=1, pending=2) as encoder:
        for _ in range(2):
            encoder.add(encode, committed.append)
        assert committed == []
        release.set()
        encoder.add(encode, committed.append)
        assert committed
        encoder.finish()
        assert len(committed) == 3


def test_an_error_comes_at_its_turn():
    committed = []

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BackgroundEncoder() as encoder:
        encoder.add(lambda: b"first", committed.append)
        encoder.add(fail, committed.append)
        encoder.add(lambda: b"last", committed.append)
        encoder.finish()
    assert committed == [b"first"]


def test_finished_pictures_survive_an_interrupt():
    committed = []
    with pytest.raises(KeyboardInterrupt), BackgroundEncoder(threads=1) as encoder:
        encoder.add(lambda: time.sleep(0.05) or b"slow", committed.append)
        raise KeyboardInterrupt
    assert committed == [b"slow"]


def test_a_png_carries_texts():
    import io

    content = encode_png(Image.new("RGB", (8, 8), (1, 2, 3)), {"stepvar": "settings"})
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.text == {"stepvar": "settings"} and opened.getpixel((0, 0)) == (1, 2, 3)

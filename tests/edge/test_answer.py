"""Who waits for an answer is woken when there is what it waits for, and not before."""

from concurrent.futures import Future

import pytest

from runtime.edge.answer import Stream
from runtime.edge.answer_text import Piece
from runtime.edge.resume import FinishReason


def test_a_reader_is_woken_by_the_first_piece_that_it_has_not_seen() -> None:
    stream = Stream()
    waits = [stream.more(seen) for seen in range(4)]
    for written in range(1, 4):
        stream.add([Piece("x", False, written)], [7])
        assert [wait.done() for wait in waits] == [seen < written for seen in range(4)]
        assert stream.more(written - 1).done()


@pytest.mark.parametrize("reason", ["stop", None])
def test_the_end_wakes_everybody(reason: FinishReason | None) -> None:
    stream, writing = Stream(), Future[FinishReason]()
    waits = [stream.more(seen) for seen in (0, 1000)]
    if reason:
        writing.set_result(reason)
    else:
        writing.set_exception(OSError("gone"))
    stream.end(writing)
    assert all(wait.done() for wait in waits)
    assert stream.more(1000).done()
    assert (stream.finish_reason, stream.error is None) == (reason, reason is not None)

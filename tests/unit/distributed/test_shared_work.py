from __future__ import annotations

from app.distributed.shared_work import SharedWork


def test_a_process_alone_does_everything_itself_and_keeps_its_objects() -> None:
    alone = SharedWork()
    thing = object()

    assert alone.is_alone
    assert alone.once(lambda: thing) is thing
    assert alone.divided([3, 1, 2], lambda items: (10 * item for item in items)) == [30, 10, 20]

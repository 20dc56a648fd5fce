"""What a stage's errors reach: a source, or the whole unit."""

import pytest

from curation.errors import CodedError, SourceError, StageError
from curation.stage import Source, Stage


class Failing(Stage):
    name = "failing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def one(self, source: Source) -> None:
        raise self.error


def through(error: Exception) -> dict[str, object]:
    source = Source("u", "x", {"status": "ok"}, clips=[{"clip_id": "c"}])
    (passed,) = Failing(error).rows(iter([source]))
    assert passed.clips == []
    return passed.row


@pytest.mark.parametrize(
    "error,code,message",
    [(SourceError("not_media", "no film"), "not_media", "no film"), (KeyError("x"), "internal", "failing: KeyError: 'x'")],
)
def test_an_error_is_the_sources_row(error: Exception, code: str, message: str) -> None:
    assert through(error) == {"status": "error", "error_code": code, "error_message": message}


def test_what_the_machine_or_a_store_is_to_blame_for_is_no_sources_row() -> None:
    with pytest.raises(CodedError, match="read_failed: the store did not answer"):
        through(StageError("read_failed", "the store did not answer"))

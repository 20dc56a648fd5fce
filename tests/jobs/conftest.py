"""The small corpus, made once."""

from pathlib import Path

import pytest

from tests.small_runs import small_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small sources and a manifest."""
    return small_corpus(tmp_path_factory.mktemp("in") / "corpus")

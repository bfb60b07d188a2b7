"""The real S3 server, a place of its own for each test, and the proxy that makes things go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from lorafinetune.storage.bucket import Bucket
from tests.integration.trainer.faults import Proxy, proxy
from tests.integration.trainer.s3 import Access, serve


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    with serve(tmp_path_factory.mktemp("s3")) as access:
        yield access


_numbers = itertools.count(1)


@pytest.fixture
def uri() -> str:
    """A prefix that no other test has."""
    return f"s3://loras/test-{next(_numbers)}/"


@pytest.fixture
def bucket(s3: Access, uri: str) -> Bucket:
    return s3.bucket(uri)


@pytest.fixture
def between(s3: Access) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def through(s3: Access, between: Proxy, uri: str) -> Bucket:
    """The same place, through the proxy."""
    return s3.at(between.endpoint).bucket(uri)

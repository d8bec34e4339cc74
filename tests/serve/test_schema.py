"""Requests from the server's own OpenAPI, a small number; `make serve-stress` sends many."""

import pytest
from serve_schema import ask_by_schema


@pytest.mark.filterwarnings("ignore")  # of the library that makes the requests
def test_no_request_of_the_schema_breaks_the_server(url: str) -> None:
    asked, faults = ask_by_schema(url, 4)
    assert asked > 50
    assert not faults

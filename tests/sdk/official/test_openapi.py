"""schemathesis makes requests from our own description: no 5xx, and answers are as described."""

import os

import schemathesis
from conftest import KEY
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error, response_schema_conformance

schema = schemathesis.openapi.from_url(f"{os.environ['KILOTOK_URL']}/openapi.json")


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_is_described_holds(case):
    response = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    checks = [not_a_server_error, response_schema_conformance]
    case.validate_response(response, checks=checks)

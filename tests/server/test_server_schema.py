"""The schema of the server says all that it does, and nothing else."""

from __future__ import annotations

import base64

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from reward_server import RewardServer, filled, red
from schemathesis import GenerationMode


KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def server():
    with RewardServer({"red": red()}, api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def described(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/health", "GET", GenerationMode.POSITIVE),
        ("/ready", "GET", GenerationMode.POSITIVE),
        ("/metrics", "GET", GenerationMode.POSITIVE),
        ("/rewards", "GET", GenerationMode.POSITIVE),
        ("/score", "POST", GenerationMode.POSITIVE),
        ("/score", "POST", GenerationMode.NEGATIVE),
    ],
)
def test_every_answer_is_as_the_schema_says(described, path, method, mode):
    operation = described[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        # Texts that are no images are refused, and a schema cannot say which these are.
        case.call_and_validate(
            headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=[schemathesis.checks.positive_data_acceptance]
        )

    check()


def test_the_schema_is_complete(server):
    told = server.client.get("/openapi.json").json()
    assert told["openapi"].startswith("3.")
    assert {path: list(methods) for path, methods in told["paths"].items()} == {
        "/health": ["get"], "/ready": ["get"], "/metrics": ["get"], "/rewards": ["get"], "/score": ["post"],
    }  # fmt: skip
    score = told["paths"]["/score"]["post"]
    assert set(score["responses"]) == {
        "200", "400", "401", "403", "408", "413", "415", "422", "500", "502", "503", "504",
    }  # fmt: skip
    assert set(score["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert score["responses"]["503"]["headers"].keys() == {"Retry-After"}
    for path, methods in told["paths"].items():
        locked = path not in ("/health", "/ready")
        for method in methods.values():
            assert bool(method.get("security")) == locked, path
            assert ("401" in method["responses"]) == locked, path
            assert method["description"], path


def test_what_the_schema_shows_as_a_request_is_one(server):
    body = {"images": [base64.b64encode(filled(4)).decode()], "prompts": ["a"], "rewards": ["red"]}
    reply = server.client.post("/score", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.json() == {"scores": {"red": [4.0]}}

"""Web pages may not call a local bridge, except from the origins that the operator names."""

from __future__ import annotations

import pytest

from latentwire_bridge.edge.browsers import BrowserPolicy
from latentwire_bridge.openai.errors import ApiError
from tests.support.bridge.bridging import bridging

FOREIGN = "https://evil.example"
ALLOWED = "https://app.example"
SDK_HEADERS = (
    "authorization,content-type,idempotency-key,x-stainless-arch,x-stainless-lang,"
    "x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
OUR_HEADERS = ("x-ratelimit-", "x-request-id", "request-id", "openai-", "retry-after")


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://localhost:3000", ""])
async def test_a_web_page_is_refused_before_anything_is_generated(bridge, server, origin):
    answer = await bridge.send(
        "POST", "/v1/images/generations", json={"prompt": "a"}, headers={"Origin": origin}
    )

    assert answer.status == 403
    assert answer.error["code"] == "origin_not_allowed"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert server.model.calls == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_content_types_that_need_no_preflight_are_refused(bridge, server, kind):
    answer = await bridge.send(
        "POST", "/v1/images/generations", data=b'{"prompt": "a"}', headers={"Content-Type": kind}
    )

    assert answer.status == 415
    assert server.model.calls == []


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9225", "localhost.evil.example", "a b", "user@localhost"]
)
async def test_a_host_that_was_rebound_to_our_address_is_refused(bridge, host):
    answer = await bridge.get("/v1/models", headers={"Host": host})

    assert answer.status == 403
    assert answer.error["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1:80", "[::1]:9225", "ai.localhost", "10.1.2.3"]
)
async def test_ip_addresses_and_localhost_are_allowed_hosts(bridge, host):
    assert (await bridge.get("/v1/models", headers={"Host": host})).status == 200


async def test_the_operator_can_allow_hosts(server):
    settings = {"allowed_hosts": "gateway", "public_url": "https://images.example"}
    async with bridging(server.address, **settings) as bridge:
        for host in ("gateway", "gateway:9225", "images.example"):
            assert (await bridge.get("/healthz", headers={"Host": host})).status == 200
        assert (await bridge.get("/healthz", headers={"Host": "other"})).status == 403


async def test_a_bridge_that_listens_on_all_interfaces_accepts_any_host(server):
    async with bridging(server.address, host="0.0.0.0") as bridge:
        url = f"http://127.0.0.1:{bridge.port}/healthz"
        async with bridge.session.get(url, headers={"Host": "bridge.cluster"}) as response:
            assert response.status == 200


async def test_web_pages_of_an_allowed_origin_may_call(server):
    async with bridging(server.address, cors_origins=f"{ALLOWED}/, https://b.example") as bridge:
        preflight = {
            "Origin": ALLOWED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": SDK_HEADERS,
        }
        allowed = await bridge.send("OPTIONS", "/v1/images/generations", headers=preflight)
        assert allowed.status == 204
        assert allowed.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert allowed.headers["Access-Control-Allow-Headers"] == SDK_HEADERS
        assert "POST" in allowed.headers["Access-Control-Allow-Methods"]

        answer = await bridge.get("/v1/models", headers={"Origin": ALLOWED})
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Vary"] == "Origin"

        generated = await bridge.send(
            "POST",
            "/v1/images/generations",
            json={"prompt": "a"},
            headers={"Origin": ALLOWED, "Idempotency-Key": "one", "Authorization": "Bearer any"},
        )
        assert generated.status == 200
        exposed = generated.headers["Access-Control-Expose-Headers"].split(", ")
        sent = {name.lower() for name in generated.headers if name.lower().startswith(OUR_HEADERS)}
        assert len(sent) >= 7
        assert sent <= set(exposed)

        failed = await bridge.get("/v1/models/unknown", headers={"Origin": ALLOWED})
        assert failed.status == 404
        assert failed.headers["Access-Control-Allow-Origin"] == ALLOWED

        other = await bridge.send("OPTIONS", "/v1/models", headers={**preflight, "Origin": FOREIGN})
        assert other.status == 403


def test_a_star_allows_every_origin():
    policy = BrowserPolicy(cors_origins=frozenset({"*"}))

    policy.check(host="anything", origin=FOREIGN)

    assert policy.cors_headers(FOREIGN)["Access-Control-Allow-Origin"] == FOREIGN


def test_programs_without_an_origin_are_checked_by_host_only():
    policy = BrowserPolicy(allowed_hosts=frozenset())

    policy.check(host=None, origin=None)
    policy.check(host="localhost:9225", origin=None)
    assert policy.cors_headers(None) == {}
    with pytest.raises(ApiError):
        policy.check(host="other", origin=None)

"""What stands before every endpoint: Host, API key, size and type of the body, request id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from mlx_serving.frontends.http.middleware import host_name

Serve = Callable[..., str]
Browse = Callable[[str], httpx2.Client]

JSON = {"content-type": "application/json"}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error of a response, which is in OpenAI's shape."""
    (error,) = response.json().values()
    assert {"message", "type", "param", "code"} <= error.keys()
    return dict(error)


def test_a_page_of_another_site_cannot_rebind_its_name_to_loopback(serve: Serve, browse: Browse) -> None:
    browser = browse(serve(allowed_hosts=("Models.example",)))
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "", "[::2]:80"):
        assert browser.get("/livez", headers={"host": host}).status_code == 403, host
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8080", "localhost.", "models.example"):
        assert browser.get("/livez", headers={"host": host}).status_code == 200, host


def test_host_names_lose_port_brackets_and_case() -> None:
    assert host_name("LocalHost.:80") == "localhost"
    assert host_name("[::1]:80") == "::1"


def test_beyond_loopback_any_host_will_do_and_admin_calls_need_a_key(serve: Serve, browse: Browse) -> None:
    url = serve(host="0.0.0.0").replace("0.0.0.0", "127.0.0.1")
    browser = browse(url)
    assert browser.get("/livez", headers={"host": "any.example"}).status_code == 200
    response = browser.post("/admin/models/load", json={"model": "tiny"})
    assert (response.status_code, error_of(response)["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/openapi.json", "/nowhere"])
def test_with_a_key_only_its_bearer_comes_in(serve: Serve, browse: Browse, path: str) -> None:
    browser = browse(serve(api_key="sécret"))
    for given in (None, "Bearer wrong", "Bearer", "sécret", "Basic sécret", "Bearer sécretx", "\xff"):
        headers = {} if given is None else {b"authorization": given.encode()}
        response = browser.get(path, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (401, "unauthorized"), given
        assert response.headers["www-authenticate"] == "Bearer"
    right = {b"authorization": "bearer sécret".encode()}
    assert browser.get(path, headers=right).status_code in (200, 404)


def test_probes_need_no_key(serve: Serve, browse: Browse) -> None:
    browser = browse(serve(api_key="secret"))
    assert [browser.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(serve: Serve, browse: Browse) -> None:
    browser = browse(serve(max_body_bytes=4096))

    def in_pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    for content in (b"x" * 5000, in_pieces()):
        response = browser.post("/tokenize", content=content, headers=JSON)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert browser.post("/tokenize", json={"text": "x" * 3000}).status_code == 200


def test_a_large_body_is_read_beside_the_loop(url: str, browse: Browse) -> None:
    browser = browse(url)
    assert browser.post("/detokenize", json={"tokens": [97] * 200_000}).json()["text"] == "a" * 200_000
    assert browser.post("/detokenize", json={"tokens": [97] * 200_000 + [-1]}).status_code == 400


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_of_another_type_is_refused(url: str, browse: Browse, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = browse(url).post("/tokenize", content=b'{"text": "a"}', headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b'{"text": "\\ud800"}', b'{"text": NaN}', b"\xff\xfe", b"[" * 99_999],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/admin/models/load"])
def test_a_broken_body_is_the_callers_mistake(url: str, browse: Browse, path: str, body: bytes) -> None:
    response = browse(url).post(path, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_are_told_in_the_shape_of_the_api(url: str, browse: Browse) -> None:
    browser = browse(url)
    response = browser.get("/v1/nothing")
    assert (response.status_code, error_of(response)["message"]) == (404, "There is no GET /v1/nothing")
    response = browser.get("/v1/chat/completions")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_other_origins_get_no_permission(url: str, browse: Browse) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = browse(url).options("/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_every_response_has_a_request_id(url: str, browse: Browse) -> None:
    browser = browse(url)
    for path in ("/livez", "/nowhere"):
        assert browser.get(path).headers["x-request-id"].startswith("req_")
        assert browser.get(path, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        hostile = {"x-request-id": "a b" * 100}
        assert browser.get(path, headers=hostile).headers["x-request-id"].startswith("req_")

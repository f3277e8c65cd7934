"""Does the health check see a server that is not there, and a site that has not reached its server?"""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.deployment import free_port
from tests.support.scripts import load_script

health = load_script("health")


@pytest.fixture
def page() -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_page_that_answers_is_healthy_and_one_that_does_not_is_not(page: int) -> None:
    assert health.main([f"http://127.0.0.1:{page}/health", f"tcp://127.0.0.1:{page}"]) == 0
    assert health.main([f"http://127.0.0.1:{page}/broken"]) == 1
    assert health.main([f"tcp://127.0.0.1:{free_port()}"]) == 1
    assert health.main([f"tcp://127.0.0.1:{page}", f"tcp://127.0.0.1:{free_port()}"]) == 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_joined_means_a_connection_that_is_open_now(family: socket.AddressFamily) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"joined://127.0.0.1:{port}"
        assert health.main([url]) == 1  # reachable is not joined
        with socket.socket(family) as site:
            site.connect(("127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1", port))
            connection, _ = server.accept()
            assert health.main([url]) == 0
            assert health.main([f"joined://127.0.0.1:{free_port()}"]) == 1
            connection.close()
        assert health.main([url]) == 1


@pytest.mark.parametrize(
    "url", ["joined://no-such-host.invalid:1", "joined://127.0.0.1", "ftp://127.0.0.1:1"]
)
def test_a_wrong_address_is_unhealthy(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main([url]) == 1
    assert capsys.readouterr().out.startswith(url)


def test_no_address_is_unhealthy() -> None:
    assert health.main([]) == 1

"""How a client brings files and URLs into a request."""

from __future__ import annotations

import base64
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from samplerpool.data import media
from samplerpool.data.media import has_media, with_media_read
from samplerpool.errors import RenderError
from samplerpool.types import Message

URL = "data:image/png;base64,iVBORyBvZiBhIGtpbmQ="


def asked(value: str, kind: str = "image_url") -> list[Message]:
    return [{"role": "user", "content": [{"type": "text", "value": "What?"}, {"type": kind, "value": value}]}]  # type: ignore[typeddict-item,misc,list-item]


def read(value: str, kind: str = "image_url", **options: Any) -> str:
    return with_media_read(asked(value, kind), **options)[0]["content"][1]["value"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    path.write_bytes(b"\x89PNG of a kind")
    return path


def expected(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def test_messages_of_text_are_left_as_they_are() -> None:
    messages: list[Message] = [{"role": "user", "content": [{"type": "text", "value": "/etc/hostname"}]}]
    assert not has_media(messages)
    assert with_media_read(messages) is messages


def test_files_are_read(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = asked(str(picture))
    made = with_media_read(messages)
    assert has_media(made)
    assert made[0]["content"] == [{"type": "text", "value": "What?"}, {"type": "image_url", "value": expected(picture)}]
    assert messages == asked(str(picture))
    assert read(picture.as_uri()) == read(f"file://localhost{picture.as_uri()[7:]}") == expected(picture)
    assert read(picture.name, folder=str(picture.parent)) == expected(picture)
    monkeypatch.chdir(picture.parent)
    assert read(picture.name) == read(picture.name, folder="/nowhere") == expected(picture)
    monkeypatch.setenv("HOME", str(picture.parent))
    assert read(f"~/{picture.name}") == expected(picture)
    assert read(URL) == URL


def test_a_file_of_no_known_name_is_sent_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"abc")
    assert read(str(tmp_path / "picture")) == "data:application/octet-stream;base64,YWJj"


def test_what_cannot_be_read_is_named(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(value: str, kind: str = "image_url") -> str:
        with pytest.raises(RenderError) as caught:
            read(value, kind)
        assert caught.value.message.startswith("messages[0].content[1]: the ")
        return caught.value.message

    assert "'/nowhere/x.png' cannot be read: No such file" in refused("/nowhere/x.png")
    assert "is no file" in refused(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(str(tmp_path / "pipe"))
    assert "is empty" in refused(" ")
    assert "cannot be read" in refused("nul\0byte")
    assert "cannot be read" in refused("x" * 5000)
    assert len(refused("x" * 5000)) < 300
    assert "kind that is not known" in refused("s3://bucket/x.png")
    assert "another machine, 'host'" in refused("file://host/x.png")
    assert "image/png; use a block of type image_url" in refused(str(picture), "audio_url")
    (tmp_path / "empty.png").touch()
    assert "has no bytes" in refused(str(tmp_path / "empty.png"))
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", 5)
    assert "larger than the 5 bytes" in refused(str(picture))


class _Site(http.server.BaseHTTPRequestHandler):
    asked_for: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked_for.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/x.png")
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x.png")
        elif self.path == "/x.png":
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
        elif self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav")
        else:
            self.send_response(404)
        self.end_headers()
        self.wfile.write(b"abc")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    _Site.asked_for.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_are_fetched_only_on_request(site: str) -> None:
    with pytest.raises(RenderError, match=r"only fetched on request: --fetch-media, or fetch_media=True"):
        read(f"{site}/x.png")
    assert _Site.asked_for == []
    assert read(f"{site}/x.png", fetch=True) == "data:image/png;base64,YWJj"
    assert read(f"{site}/moved", fetch=True) == "data:image/png;base64,YWJj"


def test_what_cannot_be_fetched_is_named(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, why in (("/gone", "404"), ("/away", "redirects to 'ftp:"), ("/page", "is of type audio/wav")):
        with pytest.raises(RenderError, match=why):
            read(f"{site}{path}", fetch=True)
    with pytest.raises(RenderError, match="cannot be fetched"):
        read("http://127.0.0.1:9/x.png", fetch=True)
    with pytest.raises(RenderError, match="cannot be fetched"):
        read("http://[broken/x.png", fetch=True)
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", 2)
    with pytest.raises(RenderError, match="larger than the 2 bytes"):
        read(f"{site}/x.png", fetch=True)

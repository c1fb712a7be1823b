"""A small S3 server for tests: buckets in memory, one pair of credentials, and what pyarrow asks of a store."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY = "a-key-of-the-tests"
MOST_LISTED = 50  # of a page; small, so that listings take several


class ObjectStore(ThreadingHTTPServer):
    """Buckets of objects; `put` lists the keys that were written, in order, and `full` refuses what is written."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Calls)
        self.buckets: dict[str, dict[str, bytes]] = {"bucket": {}}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.uploads = count()  # of several parts, begun so far; several may be under way at once
        self.put: list[str] = []
        self.calls = 0

    @property
    def endpoint(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.server_port}"

    def uri(self, path: str) -> str:
        """Return the URI of `bucket/path` here, as a user writes it."""
        return f"s3://{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Serve an empty bucket named `bucket`."""
    with ObjectStore() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Calls(BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, call: Any) -> None:
        self.server.calls += 1
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        name, _, self.key = unquote(split.path).lstrip("/").partition("/")
        self.body = self._content()
        if f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            self._fault(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
        elif name not in self.server.buckets:
            self._fault(404, "NoSuchBucket", "The specified bucket does not exist")
        else:
            self.objects = self.server.buckets[name]
            call()

    def _content(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = _unchunked(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return _unchunked(BytesIO(body)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, text: str) -> None:
        self._send(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), Content_Type="application/xml")

    def _fault(self, status: int, code: str, what: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{what}</Message></Error>".encode())

    def _get(self) -> None:
        if not self.key:
            self._list() if self.command == "GET" else self._send(200)
            return
        content = self.objects.get(self.key)
        if content is None:
            self._fault(404, "NoSuchKey", "The specified key does not exist.")
            return
        known = {"ETag": _tag(content), "Last_Modified": "Fri, 27 Nov 2026 00:00:00 GMT"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            self._send(206, content[first : last + 1], **known, Content_Range=f"bytes {first}-{last}/{len(content)}")
            return
        self._send(200, content, **known, Content_Length=str(len(content)))

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        after = self.query.get("continuation-token", "")
        found: dict[str, str] = {}
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            name, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                within = escape(f"{prefix}{name}{cut}")
                found[prefix + name + cut] = f"<CommonPrefixes><Prefix>{within}</Prefix></CommonPrefixes>"
            else:
                told = f"<Size>{len(self.objects[key])}</Size><LastModified>2026-11-27T00:00:00Z</LastModified>"
                found[key] = f"<Contents><Key>{escape(key)}</Key>{told}</Contents>"
        names = [name for name in found if name > after]
        page, more = names[:MOST_LISTED], len(names) > MOST_LISTED
        follow = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        told = "".join(found[name] for name in page)
        self._xml(
            f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{follow}{told}</ListBucketResult>"
        )

    def _put(self) -> None:
        if "uploadId" in self.query:
            self.server.parts[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
        else:
            self._store(self.body)
        self._send(200, ETag=_tag(self.body))

    def _store(self, content: bytes) -> None:
        self.objects[self.key] = content
        self.server.put.append(self.key)

    def _post(self) -> None:
        if "uploads" in self.query:
            name = f"upload-{next(self.server.uploads)}"
            self.server.parts[name] = {}
            self._xml(f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>")
        elif "uploadId" in self.query:
            parts = self.server.parts.pop(self.query["uploadId"])
            self._store(b"".join(parts[number] for number in sorted(parts)))
            self._xml(f"<CompleteMultipartUploadResult><ETag>{_tag(b'')}</ETag></CompleteMultipartUploadResult>")
        else:  # several to delete
            for key in re.findall(r"<Key>(.*?)</Key>", self.body.decode()):
                self.objects.pop(key, None)
            self._xml("<DeleteResult></DeleteResult>")

    def _delete(self) -> None:
        self.objects.pop(self.key, None)
        self._send(204)


def _unchunked(stream: Any) -> bytes:
    """Read chunks to their end: a size in hexadecimal, perhaps a signature, the content; then trailers."""
    found = b""
    while size := int(stream.readline().split(b";")[0], 16):
        found += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return found


def _tag(content: bytes) -> str:
    return f'"{md5(content, usedforsecurity=False).hexdigest()}"'

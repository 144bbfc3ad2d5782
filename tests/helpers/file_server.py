"""A web server on loopback that serves files from memory, and fails as it is told to."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` by name; `breaks` cuts a name's next response after that many bytes, `ranges` allows ranges.

    `n_sent` counts the bytes that were sent of all files; `accept_ranges` is the header of that name.
    """

    def __init__(self):
        self.files, self.breaks, self.ranges, self.requests, self.errors = {}, {}, True, [], []
        self.n_sent, self.accept_ranges = 0, None
        self.counting = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                wanted = self.headers.get("Range")
                server.requests.append((name, wanted))
                if server.errors:
                    self.send_error(server.errors.pop(0))
                    return
                if name not in server.files:
                    self.send_error(404)
                    return
                data, start = server.files[name], 0
                end = len(data)
                if wanted and server.ranges:
                    first, last = wanted.removeprefix("bytes=").split("-")
                    start, end = int(first), min(end, int(last) + 1) if last else end
                    if start >= len(data):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(data)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(end - start))
                self.end_headers()
                stop_at = min(end, start + server.breaks.pop(name, end))
                try:
                    for at in range(start, stop_at, 1 << 16):
                        block = data[at:min(stop_at, at + (1 << 16))]
                        with server.counting:  # before the client has it, and may look at the count
                            server.n_sent += len(block)
                        self.wfile.write(block)
                except OSError:  # the client has what it wants
                    self.close_connection = True

            def do_HEAD(self):
                name = self.path.rpartition("/")[2]
                self.send_response(200 if name in server.files else 404)
                self.send_header("Content-Length", str(len(server.files.get(name, b""))))
                if server.accept_ranges:
                    self.send_header("Accept-Ranges", server.accept_ranges)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

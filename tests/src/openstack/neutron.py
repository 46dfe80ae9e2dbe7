"""Stands for Neutron: no network, port or group exists. Argument: the port to listen on."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Nothing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.split("?")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")
        body = json.dumps({name.replace("-", "_"): []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Nothing).serve_forever()

#!/usr/bin/env python3
import http.server, os, signal, socketserver, sys, threading, urllib.request
VERSION = "3"
FAULT = "never-ready"
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        status, text = 200, VERSION
        if self.path.startswith("/env/"):
            text = os.environ.get(self.path[5:], "-")
        elif self.path == "/ready" and FAULT == "never-ready":
            status, text = 503, "not yet"
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
def serve():
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("serving", VERSION, flush=True)
    server.serve_forever()
if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "fail":
    print("failing on purpose", flush=True)
    sys.exit(3)

"""A W&B server of the size of a test: it answers the few requests of one client and keeps what arrives.

`with WandbServer() as server:` listens on a free port of the loopback; a client reaches it with the environment
variables `server.environment`. As a script it prints its port and serves until it is killed.
"""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "0" * 40


class WandbServer(ThreadingHTTPServer):
    """runs: {run id: its upserts' fields merged, with "history" rows, "summary" and the names of "files"}.

    Set `refuse` to an HTTP status to answer every later upload of history with it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.refuse: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.server_port)

    def run_named(self, name: str) -> dict[str, Any]:
        """The one run with this display name."""
        (run,) = [run for run in self.runs.values() if run.get("displayName") == name]
        return run

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave without a goodbye."""

    def graphql(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            run = self.runs.setdefault(values["name"], {"history": [], "summary": {}, "files": {}})
            run.update({field: value for field, value in values.items() if value is not None})
            project = {
                "id": "p",
                "name": run["project"],
                "entity": {"id": "e", "name": values.get("entity") or "tester"},
            }
            bucket = {"id": "b", "name": values["name"], "displayName": run.get("displayName"), "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if operation == "CreateRunFiles":
            address = f"http://127.0.0.1:{self.server_port}/upload/{values['run']}"
            files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def file_stream(self, run: dict[str, Any], chunks: dict[str, Any]) -> None:
        for name, chunk in chunks.get("files", {}).items():
            rows = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                run["history"][chunk["offset"] :] = rows
            elif name == "wandb-summary.json":
                run["summary"] = rows[-1]
        if chunks.get("complete"):
            run["exitcode"] = chunks["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer, place = 200, {}, self.path.strip("/").split("/")
        if place == ["graphql"]:
            query = json.loads(body)
            answer = {"data": self.server.graphql(query.get("operationName", ""), query.get("variables") or {})}
        elif place[0] == "upload":
            self.server.runs[place[1]]["files"]["/".join(place[2:])] = body
        elif place[-1] == "file_stream":
            if self.server.refuse is None:
                self.server.file_stream(self.server.runs[place[-2]], json.loads(body))
            status = self.server.refuse or 200
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def environment(port: int) -> dict[str, str]:
    """What makes a W&B client speak to the server on `port`."""
    return {
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",
    }


if __name__ == "__main__":
    with WandbServer() as server:
        print(server.server_port, flush=True)
        threading.Event().wait()

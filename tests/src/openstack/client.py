"""Speaks to OpenStack's APIs for the tests, one JSON object a line in and out: starting Python for each call costs seconds.

The first line names the identity service and the logins. Each further line is a request: as (which login), service,
method, path, and as needed body, version (of the compute API), upload (a file) or download (a file).
"""

import json
import sys

from keystoneauth1 import session
from keystoneauth1.identity import v3

first = json.loads(sys.stdin.readline())
sessions = {}


def session_of(name):
    if name not in sessions:
        login = v3.Password(auth_url=first["auth_url"], **first["logins"][name])
        sessions[name] = session.Session(login, timeout=300)
    return sessions[name]


def perform(order):
    options = {"headers": {}, "raise_exc": False, "stream": "download" in order}
    options["endpoint_filter"] = {"service_type": order["service"], "interface": "public"}
    if "version" in order:
        options["headers"]["OpenStack-API-Version"] = "compute " + order["version"]
    if "body" in order:
        options["json"] = order["body"]
    if "upload" in order:
        options["headers"]["Content-Type"] = "application/octet-stream"
        options["data"] = open(order["upload"], "rb")
    login = session_of(order["as"])
    if order["path"] == "token":
        return {"status": 200, "body": {"token": login.get_token(), "user": login.get_user_id()}}
    answer = login.request(order["path"], order["method"], **options)
    if "download" in order and answer.status_code < 300:
        with open(order["download"], "wb") as file:
            for piece in answer.iter_content(1 << 20):
                file.write(piece)
        return {"status": answer.status_code, "body": None}
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    return {"status": answer.status_code, "body": body}


for line in sys.stdin:
    try:
        result = perform(json.loads(line))
    except Exception as error:
        result = {"status": 0, "body": f"{type(error).__name__}: {error}"}
    print(json.dumps(result), flush=True)

"""Leads generated requests to what there is: of ten that the document allows, seven name a session, a pack, a snapshot that exists.

Without that, nearly all would be turned away at the door. What is against the document stays as it was generated.
"""

import base64
import hashlib
import json
import os
import random
import struct

import schemathesis
from hypothesis import strategies

with open(os.environ["UNDERLAY_KNOWN"], encoding="utf-8") as file:
    KNOWN = json.load(file)
HANDLES = KNOWN["handles"]
SINGLE = {"snapshot": "snapshots", "node": "nodes", "job": "jobs"}

# To the millisecond, in UTC, as the document's pattern has it: hardly any other point in time would do.
schemathesis.openapi.format(
    "date-time", strategies.datetimes().map(lambda time: time.isoformat(timespec="milliseconds") + "Z")
)


def ids(dice, kind):
    """A batch of ids, some of which are stored."""
    stored = [bytes.fromhex(text) for text in KNOWN["nodes" if kind == 2 else "chunks"]]
    some = {dice.randbytes(32) for _ in range(dice.choice([0, 1, 9, 30]))}
    if dice.random() < 0.7:
        some = set()
    some.update(dice.sample(stored, dice.randint(1, len(stored))))
    return b"ULid" + bytes([1, kind, 0, 0]) + struct.pack("<I", len(some)) + b"".join(sorted(some))


def body_of(dice, name, path):
    """A body that the operation can do something with; None if any will do."""
    if name in ("sessions_have_chunks", "read_locate"):
        return ids(dice, 1)
    if name in ("sessions_have_nodes", "read_nodes"):
        return ids(dice, 2)
    if name == "sessions_put_pack":
        pack = dice.choice(KNOWN["packs"])
        path.update(kind=pack["kind"], name=pack["name"])
        content = base64.b64decode(pack["content"])
        if dice.random() < 0.3:
            content = content[: dice.randrange(len(content))] + dice.randbytes(9)
            path["name"] = hashlib.sha256(content).hexdigest()
        return content
    if name == "sessions_commit":
        session = dice.choice(KNOWN["commits"])
        path["handle"] = session["handle"]
        return session["document"].encode()
    if name == "keys_put":
        path["slot"] = KNOWN["slot"]["slot"]
        return KNOWN["slot"]["document"].encode()
    if name == "keys_make_repository":
        path["repository"] = KNOWN["empty"]
        return json.dumps(KNOWN["new"]).encode()
    if name == "sessions_pin_roots":
        return json.dumps(KNOWN["roots"]).encode()
    if name == "verify_vouch":
        return json.dumps([pack["name"] for pack in KNOWN["packs"]]).encode()
    if name == "sessions_open":
        return json.dumps({"vm": "käse 1"}).encode()
    return None


def keep_sessions(request):
    """A collection shuts no session out: other operations need them."""
    options = request.get("options") if isinstance(request, dict) else None
    if isinstance(options, dict) and isinstance(options.get("lease_ms"), int) and options["lease_ms"] >= 0:
        options["lease_ms"] = max(options["lease_ms"], 1 << 40)


@schemathesis.hook
def before_call(context, case, kwargs):
    name = case.operation.definition.raw.get("operationId")
    path = dict(case.path_parameters or {})
    if name == "jobs_start":
        keep_sessions(case.body)
    if case.meta is None or not case.meta.generation.mode.is_positive or "repository" not in path:
        return
    dice = random.Random(repr((name, sorted(path.items()), case.query, case.body)))
    if dice.random() < 0.3:
        return
    for part, known in SINGLE.items():
        if part in path:
            path[part] = dice.choice(KNOWN[known])
    if "handle" in path:
        # Who ends sessions ends always the same.
        path["handle"] = HANDLES[0] if name == "sessions_abandon" else dice.choice(HANDLES[1:])
    if "slot" in path:
        path["slot"] = KNOWN["slot"]["slot"]
    if name in ("read_pack", "verify_whole"):
        pack = dice.choice([pack for pack in KNOWN["packs"] if name == "verify_whole" or pack["kind"] == "data"])
        path["name"] = pack["name"]
        if name == "verify_whole":
            path["kind"] = pack["kind"]
        else:
            case.query = {"offset": dice.randrange(99), "length": dice.randrange(999)}
    if name in ("direct_upload", "direct_stored", "direct_location"):
        pack = dice.choice([pack for pack in KNOWN["packs"] if name != "direct_location" or pack["kind"] == "data"])
        path["name"] = pack["name"]
        if "kind" in path:
            path["kind"] = pack["kind"]
    if name == "jobs_status":
        case.query = {}
    body = body_of(dice, name, path)
    if body is not None:
        # As it is: what is sealed would not survive being written anew.
        kwargs["data"] = body
    case.path_parameters = path

"""What comes over MQTT and is no message, or one that makes no sense."""

import json

GARBAGE = (
    b"",
    b"\x00\xff\xfe",
    b"not json",
    b"[]",
    b"null",
    b"{}",
    b'{"a":' * 3000,
    b'{"id":NaN}',
    json.dumps(
        {"proplet_id": "../../etc", "task_id": "..", "round_id": "+/#", "id": "/", "app_name": ""}
    ).encode(),
    json.dumps(
        {"proplet_id": 7, "task_id": [], "round_id": {}, "participants": "all", "app_name": 1}
    ).encode(),
    json.dumps({"proplet_id": "x" * 100_000, "app_name": "x" * 100_000, "round_id": "x" * 100_000}).encode(),
    json.dumps({"app_name": "http://[::1/x", "chunk_idx": -1, "total_chunks": 2**70, "data": "%%%"}).encode(),
    json.dumps({"task_id": "nobody", "results": {"a": [[]]}, "error": 5}).encode(),
)

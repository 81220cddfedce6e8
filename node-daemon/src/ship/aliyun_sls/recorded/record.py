"""Records what the vendor's own client would send, for the tests of `aliyun_sls`.

    python3 -m venv venv && venv/bin/pip install aliyun-log-python-sdk==0.9.52 && venv/bin/python record.py > requests.json

Nothing is sent: the client's last step is replaced, and its clock stands still.
"""

import datetime
import json
import sys

import aliyun.log.auth
from aliyun.log import LogClient, LogItem, PutLogsRequest
from aliyun.log.compress import lz_decompress


class Still(datetime.datetime):
    @classmethod
    def utcnow(cls):
        return cls(2026, 11, 24, 10, 0, 0)


aliyun.log.auth.datetime = Still
requests = []


def record(name, signature, endpoint, token, call):
    client = LogClient(
        endpoint, "an-id", "a-secret", securityToken=token, source="node-1",
        auth_version=signature, region="cn-hangzhou",
    )

    def keep(method, url, params, body, headers, response_type):
        headers = {name.lower(): value for name, value in headers.items()}
        if headers.get("x-log-compresstype") == "lz4":
            raw = lz_decompress(int(headers["x-log-bodyrawsize"]), body)
        else:
            raw = body
        requests.append({
            "name": name,
            "signature": signature,
            "token": token,
            "method": method,
            "url": url,
            "params": params,
            "headers": headers,
            "body": body.hex(),
            "raw": raw.hex(),
        })
        return {}, {}

    client._sendRequest = keep
    call(client)


def put(hash_key=None):
    first = LogItem(1795514400, [
        ("@timestamp", "2026-11-24T10:00:00.123456789Z"),
        ("message", 'he said "grüße" \\ \u2028 and left'),
        ("n", "42"),
        ("nested", '{"a":[1,null,true]}'),
        ("empty", ""),
    ], time_nano_part=123456789)
    second = LogItem(1795514401, [
        ("@timestamp", "2026-11-24T10:00:01.000000005Z"),
        ("message", "plain"),
    ], time_nano_part=5)
    request = PutLogsRequest("shop", "web", topic="a topic", source="node-1", logitems=[first, second], hashKey=hash_key)
    return lambda client: client.put_logs(request)


def create(client):
    client.create_logstore("shop", "web", ttl=1, shard_count=2)


endpoint = "https://cn-hangzhou.log.aliyuncs.com"
for version in ("v1", "v4"):
    record("put", version, endpoint, None, put())
    record("put-to-a-shard", version, endpoint, None, put("0123456789abcdef0123456789abcdef"))
    record("put-with-a-token", version, endpoint, "a-token", put())
    record("create", version, endpoint, None, create)
json.dump(requests, sys.stdout, indent=1, ensure_ascii=False, default=str)
print()

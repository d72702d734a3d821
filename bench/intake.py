"""Hands over for so many seconds, and says how fast: called by bench/intake."""

import http.client
import json
import sys
import threading
import time
import urllib.parse
import urllib.request

LANES = 8
BATCH = 100


def post(connection, body):
    connection.request("POST", "/v1/channels/push/changes?site=dc", body)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 202:
        raise SystemExit(f"{answer.status}: {text}")


def lane(host, number, until, count, took):
    connection, n = http.client.HTTPConnection(host), 0
    while time.monotonic() < until:
        lines = []
        for _ in range(count):
            n += 1
            lines.append('{"command":["SET","app-%d:%d","%064d"]}' % (number, n % 20000, n))
        body = "\n".join(lines)
        begun = time.monotonic()
        post(connection, body)
        took.append(time.monotonic() - begun)


def measure(host, seconds, lanes, count):
    took, begun = [], time.monotonic()
    threads = [threading.Thread(target=lane, args=(host, k, begun + seconds, count, took)) for k in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    at = lambda share: took[min(int(len(took) * share), len(took) - 1)] * 1000
    return {
        "lanes": lanes,
        "changes_a_request": count,
        "changes_per_second": round(len(took) * count / (time.monotonic() - begun)),
        "p50_ms": round(at(0.5), 2),
        "p99_ms": round(at(0.99), 2),
    }


def status(url):
    with urllib.request.urlopen(url + "/v1/status") as answer:
        return json.load(answer)["channels"][0]["directions"]


def wait(url, ready):
    for _ in range(600):
        try:
            if ready(status(url)):
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("syncd does not get there")


def main():
    url, seconds, as_json = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    host = urllib.parse.urlparse(url).netloc
    wait(url, lambda all: all and all[0]["phase"] == "streaming")
    rows = [measure(host, seconds, lanes, count) for lanes, count in [(LANES, BATCH), (1, 1), (LANES, 1)]]
    begun = time.monotonic()
    wait(url, lambda all: all[0]["lag"]["changes"] == 0)
    drained = {"seconds_until_both_stores_had_all": round(time.monotonic() - begun, 1)}
    if as_json:
        print(json.dumps({"runs": rows, **drained}))
        return
    print(f"{'lanes':>5} {'a request':>9} {'changes/s':>10} {'p50 ms':>7} {'p99 ms':>7}")
    for row in rows:
        print("{:>5} {:>9} {:>10,} {:>7} {:>7}".format(*row.values()))
    print(f"both stores had all {drained['seconds_until_both_stores_had_all']} s later")


if __name__ == "__main__":
    main()

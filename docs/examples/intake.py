#!/usr/bin/env python3
"""Hands over changes to Causeway: intake.py URL CHANNEL SITE, a change a line on standard input, as JSON."""

import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid


def hand_over(url, channel, site, lines):
    """Until Causeway has them durably; what is wrong with them is raised."""
    site = urllib.parse.urlencode({"site": site})
    # Sent again, it is known by this: nothing is done twice.
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = "\n".join(lines).encode()
    pause = 0.05
    while True:
        request = urllib.request.Request(f"{url}/v1/channels/{channel}/changes?{site}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise ValueError(error.read().decode()) from error
        except OSError:
            pass  # nobody answers: it is not known whether it was taken
        time.sleep(pause)
        pause = min(2 * pause, 2)


if __name__ == "__main__":
    print(hand_over(*sys.argv[1:4], [line for line in sys.stdin.read().splitlines() if line]))

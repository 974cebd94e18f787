"""Draws with LangChain's ``DallEAPIWrapper`` what standard input asks for; tells what it returns.

A line of JSON each way. Runs in the environment of its client and imports nothing of ours.
"""

from __future__ import annotations

import json
import sys

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

for line in sys.stdin:
    asked = json.loads(line)
    fields = asked["fields"]
    wrapper = DallEAPIWrapper(**asked["client"], n=fields["n"], size=fields["size"])
    print(json.dumps({"urls": wrapper.run(fields["prompt"]).split("\n")}), flush=True)

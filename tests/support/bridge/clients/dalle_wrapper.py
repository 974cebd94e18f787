"""Runs the calls on standard input with LangChain's ``DallEAPIWrapper``; prints the results.

One line of JSON per call and result. It runs in the environment of its client, without our code.
"""

from __future__ import annotations

import json
import sys

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

for line in sys.stdin:
    call = json.loads(line)
    fields = call["fields"]
    wrapper = DallEAPIWrapper(**call["client"], n=fields["n"], size=fields["size"])
    print(json.dumps({"urls": wrapper.run(fields["prompt"]).split("\n")}), flush=True)

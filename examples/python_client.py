"""Two pictures in one request, streamed, with the client of this package.

eval "$(pixtral-sky endpoint --env)"      # sets PIXTRAL_ENDPOINT and PIXTRAL_API_KEY
python examples/python_client.py
"""

import os
import sys
from pathlib import Path

from pixtral_sky import Client, PixtralSkyError, read_picture

HERE = Path(__file__).parent

try:
    question = [
        "Describe this chart in detail please.",
        read_picture(HERE / "chart.png"),
        "And what does this receipt add up to?",
        read_picture(HERE / "receipt.jpg"),
    ]
    with Client(os.environ["PIXTRAL_ENDPOINT"], key=os.environ.get("PIXTRAL_API_KEY", "")) as client:
        answer = client.ask(question, max_tokens=int(os.environ.get("MAX_TOKENS", "256")))
        for text in answer:
            print(text, end="", flush=True)
except PixtralSkyError as error:
    sys.exit(f"Error: {error}")

usage = answer.usage
print(f"\n[{usage['prompt_tokens']} tokens in the prompt, {usage['completion_tokens']} in the answer]")

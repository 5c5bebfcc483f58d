"""`vllm bench serve`, again and again in one process, as its import takes as long as a run.

With the Python of the engine. Each line of standard input is the JSON list of its arguments. What it says goes
to standard output, and then its result, as it would save it, in a line that begins with RESULT.
"""

import json
import sys

from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
sys.stdout.reconfigure(line_buffering=True)
for line in sys.stdin:
    found = serve.main(parser.parse_args(json.loads(line)))
    print("RESULT", json.dumps(found), flush=True)

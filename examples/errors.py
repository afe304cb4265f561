"""What to catch: every error that clkiln raises on purpose is a ClkilnError with one clear line.

python examples/errors.py smollm2-135m
"""

import sys

import clkiln

try:
    with clkiln.Engine.load(sys.argv[1], ctx_size=64) as engine:
        print(engine.generate("word " * 100).text)
except clkiln.ContextLengthError as error:
    print(f"too long: {error}")
except clkiln.ClkilnError as error:
    sys.exit(f"error: {error}")

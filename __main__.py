"""``python -m clkiln``: the command line."""

from clkiln.cli import main

if __name__ == "__main__":
    main()
